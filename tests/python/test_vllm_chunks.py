"""Real engines of a model whose layers attend within chunks (Llama 4) beside full attention: same tokens and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from kvclient.daemon import PrivateDaemon
from kvclient.vllm.releases import fails_by_request
from support.small_models import LLAMA4
from support.vllm_engines import prompt
from support.vllm_trio import Trio
from support.vllm_worker import BLOCK

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)
if not fails_by_request():
    pytest.skip("this vLLM does not recover failed loads of several groups", allow_module_level=True)

CHUNK = 3  # blocks
FULL, GROUPS = 3, 4  # vLLM's last group is of the layer with full attention


@pytest.fixture(scope="module")
def of(daemon: PrivateDaemon) -> Iterator[Trio]:
    # If loads of several requests fail in a pool that these fill, vLLM 0.32 schedules none of them
    trio = Trio(daemon.socket, LLAMA4, {}, few=80)
    yield trio
    trio.stop()


def same_bytes(of: Trio, ids: list[int], *names: str) -> None:
    """What the engines have of a prompt has the bytes that an engine alone computes, in every group."""
    computed, blocks = of.computed(ids), of.full(ids) // BLOCK
    chunk = list(range(blocks // CHUNK * CHUNK, blocks))
    assert [sorted(each) for each in computed] == [chunk] * FULL + [list(range(blocks))]
    for name in names:
        assert of.call(name, "group_digests", ids) == computed, name


def test_answers_depend_on_the_whole_prompt(of: Trio) -> None:
    ids = prompt(203, seed=2)
    for changed in (0, 1, 40, 101, 180):
        other = [*ids[:changed], ids[changed] + 1, *ids[changed + 1 :]]
        one, two = of.answers("plain", [ids, other], 16)
        assert one != two, changed


@pytest.mark.parametrize(("length", "last"), [(260, 2), (203, 0), (230, 1), (80, 2)])
def test_an_engine_starts_from_what_another_one_computed(of: Trio, length: int, last: int) -> None:
    """``last``: blocks of the chunk that the hit ends in."""
    ids = prompt(length, seed=length)
    expected, cached = of.answer("plain", ids)
    assert cached == 0
    assert of.answer("first", ids) == (expected, 0)
    before = of.call("second", "stats")["imported"]
    assert of.answer("second", ids) == (expected, of.full(ids))
    # All blocks of full attention, and of each group of chunks those of the last one
    assert of.call("second", "stats")["imported"] - before == of.full(ids) // BLOCK + FULL * last
    same_bytes(of, ids, "first", "second")


def test_a_prompt_computed_in_pieces_is_published(of: Trio) -> None:
    """Each step computes 256 tokens, and blocks of earlier chunks are free before the request ends."""
    ids = prompt(450, seed=8)
    expected, _ = of.answer("plain", ids)
    assert of.answer("first", ids) == (expected, 0)
    assert of.answer("second", ids) == (expected, 14 * BLOCK)
    same_bytes(of, ids, "first", "second")


def test_prompts_that_part_within_a_chunk(of: Trio) -> None:
    """Of chunks vLLM keeps all blocks, so a hit may end anywhere."""
    ids = prompt(260, seed=9)
    of.answer("first", ids)
    for shared in (7, 6, 4, 3):
        other = ids[: shared * BLOCK] + prompt(60, seed=20 + shared)
        expected, _ = of.answer("plain", other)
        assert of.answer("second", other) == (expected, shared * BLOCK)
        same_bytes(of, other, "second")


def test_a_conversation_goes_on_in_the_other_engine(of: Trio) -> None:
    ids = prompt(97, seed=4)
    for turn in range(4):
        expected, _ = of.answer("plain", ids, 40)
        got, cached = of.answer(("first", "second")[turn % 2], ids, 40)
        assert got == expected
        assert (cached > 0) == (turn > 0)
        ids = ids + got + prompt(40, seed=50 + turn)


def test_answers_stay_the_same_while_blocks_go_from_group_to_group(of: Trio) -> None:
    """More prefixes than the second engine has blocks, so that it evicts, withdraws and imports all the time."""
    prompts = [prompt(170, seed=40 + i % 10)[: 129 + i % 3] + prompt(30, seed=60 + i % 14) for i in range(40)]
    expected, given = of.traffic(prompts)
    assert given == [expected, expected, expected]


@pytest.mark.parametrize("every", [1, 3, 5])
def test_failed_blocks_of_any_group_are_computed(of: Trio, every: int) -> None:
    prompts = [prompt(150 + 27 * i, seed=100 * every + i) for i in range(4)]
    of.computes_what_failed(prompts, every)
    for ids in prompts:
        same_bytes(of, ids, "first", "second")


@pytest.mark.parametrize(("group", "depth"), [("full", 0), ("chunk", 6)])
def test_a_failed_block_that_was_used_would_change_the_answer(of: Trio, group: str, depth: int) -> None:
    """The tests above see wrong bytes in any group."""
    ids = prompt(260, seed=300 + depth)
    expected, _ = of.answer("plain", ids)
    of.answer("first", ids)
    with of.failing("second", 2, reported=False, depth=depth):
        got, cached = of.answer("second", ids)
    of.forget("second")
    assert cached == 8 * BLOCK
    assert got != expected, group
