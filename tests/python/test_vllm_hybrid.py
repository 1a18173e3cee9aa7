"""Real engines of models with several KV-cache groups, or with sliding windows alone: same tokens, same bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from kvclient.daemon import PrivateDaemon
from kvclient.vllm.releases import fails_by_request
from support.forked_worker import ForkedWorker
from support.small_models import GEMMA, MISTRAL
from support.vllm_engines import ENGINE, Engines, prompt
from support.vllm_worker import BLOCK, ON_CPU
from support.worker import Worker

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)

by_request = pytest.mark.skipif(
    not fails_by_request(), reason="this vLLM does not recover failed loads of several groups"
)


@pytest.fixture(scope="module")
def engines(daemon: PrivateDaemon) -> Iterator[dict[str, Worker]]:
    """``plain``: without the connector; ``first``, ``second``: with it, the second one with few blocks.

    ``windows …``: of a model whose layers all have a window.
    """
    workers = Engines(
        {
            "plain": (None, 120, {}, GEMMA),
            "first": (daemon.socket, 120, {}, GEMMA),
            "second": (daemon.socket, 60, {}, GEMMA),
            "windows plain": (None, 60, {}, MISTRAL),
            "windows first": (daemon.socket, 60, {}, MISTRAL),
            "windows second": (daemon.socket, 60, {}, MISTRAL),
        }
    )
    yield workers
    with contextlib.ExitStack() as ending:
        for worker in workers.values():
            ending.callback(worker.stop)


def answer(engines: dict[str, Worker], name: str, ids: list[int], tokens: int = 16) -> tuple[list[int], int]:
    [given] = engines[name].call("generate", [ids], tokens)
    engines[name].call("idle_step")
    return given


def same_bytes(engines: dict[str, Worker], ids: list[int], names: tuple[str, ...], plain: str = "plain") -> None:
    """What the engines have of a prompt has the bytes that an engine alone computes, in every group."""
    engines[plain].call("generate", [ids], 1)
    computed = engines[plain].call("group_digests", ids)
    for name in names:
        assert engines[name].call("group_digests", ids) == computed, name
    last = (len(ids) - 1) // BLOCK
    for of_group in computed:
        assert last - 1 in of_group


@by_request
def test_answers_depend_on_the_whole_prompt(engines: dict[str, Worker]) -> None:
    ids = prompt(203, seed=2)
    for changed in (0, 1, 40, 101, 180):
        other = [*ids[:changed], ids[changed] + 1, *ids[changed + 1 :]]
        [(one, _), (two, _)] = engines["plain"].call("generate", [ids, other], 16)
        assert one != two, changed


@by_request
def test_an_engine_starts_from_what_another_one_computed(engines: dict[str, Worker]) -> None:
    ids = prompt(203)
    expected, cached = answer(engines, "plain", ids)
    assert cached == 0
    assert answer(engines, "first", ids) == (expected, 0)
    before = engines["second"].call("stats")["imported"]
    assert answer(engines, "second", ids) == (expected, 6 * BLOCK)
    # All six blocks of the full group; of each of the two windows the two that its end reaches into
    assert engines["second"].call("stats")["imported"] - before == 6 + 2 * 2
    assert [sorted(each) for each in engines["second"].call("group_digests", ids)] == [
        [4, 5],
        [4, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    same_bytes(engines, ids, ("first", "second"))


@by_request
def test_both_directions_and_several_at_once(engines: dict[str, Worker]) -> None:
    prompts = [prompt(120 + 20 * i, seed=20 + i) for i in range(3)]
    expected = [tokens for tokens, _ in engines["plain"].call("generate", prompts, 12)]
    engines["second"].call("generate", prompts, 12)
    engines["second"].call("idle_step")
    got = engines["first"].call("generate", prompts, 12)
    assert [tokens for tokens, _ in got] == expected
    assert [cached for _, cached in got] == [3 * BLOCK, 4 * BLOCK, 4 * BLOCK]
    for ids in prompts:
        same_bytes(engines, ids, ("first", "second"))


@by_request
def test_a_prompt_computed_in_pieces_is_published(engines: dict[str, Worker]) -> None:
    """Each step computes 256 tokens, and blocks that left the window are free before the request ends."""
    ids = prompt(450, seed=8)
    expected, _ = answer(engines, "plain", ids)
    assert answer(engines, "first", ids) == (expected, 0)
    assert answer(engines, "second", ids) == (expected, 14 * BLOCK)
    same_bytes(engines, ids, ("first", "second"))


@by_request
def test_a_conversation_goes_on_in_the_other_engine(engines: dict[str, Worker]) -> None:
    ids = prompt(97, seed=4)
    for turn in range(4):
        here = ("first", "second")[turn % 2]
        expected, _ = answer(engines, "plain", ids, 20)
        got, cached = answer(engines, here, ids, 20)
        assert got == expected
        assert (cached > 0) == (turn > 0)
        ids = ids + got + prompt(40, seed=50 + turn)


@by_request
def test_answers_stay_the_same_while_blocks_go_from_group_to_group(engines: dict[str, Worker]) -> None:
    """More prefixes than the second engine has blocks, so that it evicts, withdraws and imports all the time."""
    prompts = [prompt(170, seed=40 + i % 10)[: 129 + i % 3] + prompt(30, seed=60 + i % 14) for i in range(40)]
    expected = [tokens for tokens, _ in engines["plain"].call("generate", prompts, 8)]
    # What it computed itself is loaded from its own copies in host memory: no client counts those.
    before = engines["second"].call("totals").get("imported_blocks", 0)
    calls = [engines[name].start("generate", prompts, 8) for name in ("first", "second")]
    for call in calls:
        assert [tokens for tokens, _ in call()] == expected
    again = engines["second"].call("generate", prompts, 8)
    assert [tokens for tokens, _ in again] == expected
    assert engines["second"].call("totals")["imported_blocks"] > before


@by_request
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("every", [1, 3, 5])
def test_failed_blocks_of_any_group_are_computed(engines: dict[str, Worker], every: int, raises: bool) -> None:
    prompts = [prompt(140 + 15 * i, seed=100 * every + 10 * raises + i) for i in range(4)]
    expected = [tokens for tokens, _ in engines["plain"].call("generate", prompts, 12)]
    engines["first"].call("generate", prompts, 12)
    engines["first"].call("idle_step")
    before = engines["second"].call("totals").get("failed_blocks", 0)
    engines["second"].call("fail_loads", every, raises=raises)
    try:
        got = engines["second"].call("generate", prompts, 12)
    finally:
        engines["second"].call("fail_loads", 0)
    assert [tokens for tokens, _ in got] == expected
    assert engines["second"].call("totals")["failed_blocks"] > before
    for ids in prompts:
        same_bytes(engines, ids, ("first", "second"))


@by_request
@pytest.mark.parametrize(("group", "depth"), [("full", 0), ("window", 4)])
def test_a_failed_block_that_was_used_would_change_the_answer(
    engines: dict[str, Worker], group: str, depth: int
) -> None:
    """The tests above see wrong bytes in any group."""
    ids = prompt(203, seed=300 + depth)
    expected, _ = answer(engines, "plain", ids)
    answer(engines, "first", ids)
    engines["second"].call("fail_loads", 2, reported=False, depth=depth)
    got, cached = answer(engines, "second", ids)
    engines["second"].call("fail_loads", 0)
    engines["second"].call("reset_prefix_cache")
    # The first step after a reset looks nothing up.
    engines["second"].call("generate", [prompt(20)], 1)
    assert cached == 6 * BLOCK
    assert got != expected, group


@by_request
def test_windows_alone_hit_beyond_the_window(engines: dict[str, Worker]) -> None:
    ids = prompt(203, seed=3)
    expected, _ = answer(engines, "windows plain", ids)
    assert answer(engines, "windows first", ids) == (expected, 0)
    before = engines["windows second"].call("stats")["imported"]
    assert answer(engines, "windows second", ids) == (expected, 6 * BLOCK)
    assert engines["windows second"].call("stats")["imported"] - before == 2
    same_bytes(engines, ids, ("windows first", "windows second"), "windows plain")


def test_windows_alone_give_the_same_answers_when_blocks_fail(engines: dict[str, Worker]) -> None:
    prompts = [prompt(70 + 40 * i, seed=200 + i) for i in range(4)]
    expected = [tokens for tokens, _ in engines["windows plain"].call("generate", prompts, 12)]
    engines["windows first"].call("generate", prompts, 12)
    engines["windows first"].call("idle_step")
    engines["windows second"].call("fail_loads", 2)
    got = engines["windows second"].call("generate", prompts, 12)
    assert [tokens for tokens, _ in got] == expected
    assert engines["windows second"].call("totals")["failed_blocks"] > 0
    assert not engines["windows second"].call("stats")["off"]


def test_a_release_that_recovers_one_group_only_refuses_several(daemon: PrivateDaemon) -> None:
    if fails_by_request():
        pytest.skip("this vLLM recovers failed loads of several groups")
    other = ForkedWorker(ENGINE, daemon.socket, 60, {}, GEMMA)
    try:
        assert "a failed load of one group only" in other.call("reason")
        assert other.call("generate", [prompt(100)], 4)[0][1] == 0
    finally:
        other.stop()


@by_request
@pytest.mark.skipif(not ON_CPU, reason="an engine with the V2 model runner does not start with them")
def test_loads_that_a_step_waits_for_are_refused(daemon: PrivateDaemon) -> None:
    other = ForkedWorker(ENGINE, daemon.socket, 60, {"load": "sync"}, GEMMA)
    try:
        assert "use load=async" in other.call("reason")
    finally:
        other.stop()
