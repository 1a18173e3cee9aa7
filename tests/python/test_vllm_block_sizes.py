"""Real engines whose KV-cache groups have blocks of different numbers of tokens (Gemma 4): same tokens, same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon
from kvclient.vllm.releases import fails_by_request
from support.small_models import GEMMA4, GEMMA4_FEW
from support.vllm_engines import prompt
from support.vllm_trio import Trio
from support.waiting import eventually

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)
if not fails_by_request():
    pytest.skip("this vLLM does not recover failed loads of several groups", allow_module_level=True)

#: Name -> the model, the tokens of a window, and those of a window's and of a full block.
KINDS: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "large heads": (GEMMA4, 64, 64, 32),
    "few heads": (GEMMA4_FEW, 80, 32, 128),
}
WINDOWS = 2  # groups; the last group is of the layers with full attention


class Sized(Trio):
    """A hit ends where blocks of both kinds end: after a multiple of ``tokens``."""

    def __init__(self, socket: str, kind: str, engine: dict[str, Any] | None = None) -> None:
        model, self.window, self.window_block, self.full_block = KINDS[kind]
        # If loads of several requests fail in a pool that these fill, vLLM 0.32 schedules none of
        # them
        super().__init__(socket, model, engine or {}, tokens=max(self.window_block, self.full_block), few=80)

    def needed(self, tokens: int) -> list[list[int]]:
        """Of each group, the places of the blocks that a request needs to go on after ``tokens`` tokens."""
        first = max(0, tokens - self.window + 1) // self.window_block
        return [list(range(first, tokens // self.window_block))] * WINDOWS + [list(range(tokens // self.full_block))]

    def same_bytes(self, ids: list[int], *names: str) -> None:
        """What the engines have of a prompt has the bytes that an engine alone computes, in every group."""
        computed, needed = self.computed(ids), self.needed(self.full(ids))
        for name in names:
            theirs = self.call(name, "group_digests", ids)
            for number, places in enumerate(needed):
                of_group = {place: theirs[number].get(place) for place in places}
                assert of_group == {place: computed[number][place] for place in places}, (name, number)
                shared = theirs[number].keys() & computed[number].keys()
                assert all(theirs[number][place] == computed[number][place] for place in shared), (name, number)


@pytest.fixture(scope="module", params=sorted(KINDS))
def of(daemon: PrivateDaemon, request: pytest.FixtureRequest) -> Iterator[Sized]:
    trio = Sized(daemon.socket, request.param)
    yield trio
    trio.stop()


def test_vllm_gives_the_groups_blocks_of_different_sizes(of: Sized) -> None:
    sizes = [size for _, _, size in of.call("first", "groups")]
    assert sizes == [of.window_block] * WINDOWS + [of.full_block]
    assert not of.call("first", "stats")["off"]


def test_answers_depend_on_the_whole_prompt(of: Sized) -> None:
    ids = prompt(203, seed=2)
    for changed in (0, 1, 40, 101, 180):
        other = [*ids[:changed], ids[changed] + 1, *ids[changed + 1 :]]
        one, two = of.answers("plain", [ids, other], 16)
        assert one != two, changed


@pytest.mark.parametrize("length", [129, 203, 256, 257, 330])
def test_an_engine_starts_from_what_another_one_computed(of: Sized, length: int) -> None:
    ids = prompt(length, seed=length)
    expected, cached = of.answer("plain", ids)
    assert cached == 0
    assert of.answer("first", ids) == (expected, 0)
    before = of.call("second", "stats")["imported"]
    found = (length - 1) // of.tokens * of.tokens
    assert of.answer("second", ids) == (expected, found)
    # All blocks of the full group; of each of the two windows those that its end reaches into
    assert of.call("second", "stats")["imported"] - before == sum(map(len, of.needed(found)))
    of.same_bytes(ids, "first", "second")


def test_both_directions_and_several_at_once(of: Sized) -> None:
    prompts = [prompt(130 + 60 * i, seed=20 + i) for i in range(3)]
    expected = of.answers("plain", prompts, 12)
    of.answers("second", prompts, 12)
    of.call("second", "idle_step")
    got = of.call("first", "generate", prompts, 12)
    assert [tokens for tokens, _ in got] == expected
    assert [cached for _, cached in got] == [of.full(ids) for ids in prompts]
    for ids in prompts:
        of.same_bytes(ids, "first", "second")


def test_equal_prompts_at_once_are_imported_once(of: Sized) -> None:
    ids = prompt(290, seed=6)
    expected, _ = of.answer("plain", ids)
    of.answer("first", ids)
    before = of.call("second", "stats")["imported"]
    got = of.call("second", "generate", [ids, ids, [*ids[:-1], ids[-1] + 1]], 16)
    assert [cached for _, cached in got] == [of.full(ids)] * 3
    assert [tokens for tokens, _ in got[:2]] == [expected] * 2
    assert of.call("second", "stats")["imported"] - before == sum(map(len, of.needed(of.full(ids))))


def test_a_prompt_computed_in_pieces_is_published(of: Sized) -> None:
    """Each step computes 256 tokens, and blocks that left the window are free before the request ends."""
    ids = prompt(450, seed=8)
    expected, _ = of.answer("plain", ids)
    assert of.answer("first", ids) == (expected, 0)
    assert of.answer("second", ids) == (expected, of.full(ids))
    of.same_bytes(ids, "first", "second")


def test_prompts_that_part_are_found_as_far_as_vllm_finds_its_own(of: Sized) -> None:
    """It keeps windows where prompts end, and where it has seen them part."""
    ids = prompt(400, seed=9)
    of.answer("plain", ids)
    of.answer("first", ids)
    found = []
    for shared in (384, 352, 256, 224, 160, 128):
        other = ids[:shared] + prompt(60, seed=20 + shared)
        expected, cached = of.answer("plain", other)
        assert of.answer("second", other) == (expected, cached), shared
        of.same_bytes(other, "second")
        found.append(cached)
    assert found[0] == 384
    assert any(found[1:])


def test_a_conversation_goes_on_in_the_other_engine(of: Sized) -> None:
    """What an engine has generated fills blocks of the one kind before those of the other."""
    ids = prompt(140, seed=4)
    for turn in range(4):
        here = ("first", "second")[turn % 2]
        expected, _ = of.answer("plain", ids, 50)
        got, cached = of.answer(here, ids, 50)
        assert got == expected
        assert (cached > 0) == (turn > 0)
        of.same_bytes(ids, here)
        ids = ids + got + prompt(40, seed=50 + turn)


def test_what_is_generated_is_found_as_far_as_vllm_finds_its_own(of: Sized) -> None:
    ids = prompt(100, seed=14)
    expected, _ = of.answer("plain", ids, 180)
    assert of.answer("first", ids, 180) == (expected, 0)
    turn = ids + expected + prompt(10, seed=15)
    assert of.answer("second", turn) == of.answer("plain", turn)
    of.same_bytes(turn, "second")


def test_answers_stay_the_same_while_blocks_go_from_group_to_group(of: Sized) -> None:
    """More prefixes than the second engine has blocks, so that it evicts, withdraws and imports all the time."""
    prompts = [prompt(300, seed=40 + i % 10)[: 257 + i % 3] + prompt(30, seed=60 + i % 14) for i in range(40)]
    expected, given = of.traffic(prompts)
    assert given == [expected, expected, expected]


@pytest.mark.parametrize("every", [1, 3, 5])
def test_failed_blocks_of_any_group_are_computed(of: Sized, every: int) -> None:
    prompts = [prompt(150 + 27 * i, seed=100 * every + i) for i in range(4)]
    of.computes_what_failed(prompts, every)
    for ids in prompts:
        of.same_bytes(ids, "first", "second")


@pytest.mark.parametrize("number", [WINDOWS, 0])
def test_a_failed_block_that_was_used_would_change_the_answer(of: Sized, number: int) -> None:
    """The tests above see wrong bytes in any group."""
    ids = prompt(290, seed=401 + number)
    expected, _ = of.answer("plain", ids)
    of.answer("first", ids)
    depth = of.needed(of.full(ids))[number][0]
    with of.failing("second", 1, reported=False, depth=depth):
        got, cached = of.answer("second", ids)
    of.forget("second")
    assert cached == of.full(ids)
    assert got != expected, number


def test_an_engine_finds_in_the_host_cache_what_one_that_has_ended_computed() -> None:
    with PrivateDaemon(("--host-cache", "64M", "--orphan-ttl-s", "0")) as daemon:
        of = Sized(daemon.socket, "few heads")
        try:
            ids = prompt(290, seed=5)
            expected, _ = of.answer("plain", ids)
            assert of.answer("first", ids) == (expected, 0)

            def offloaded() -> bool:
                counted = of.call("first", "stats")
                return counted["published"] > 0 and counted["offloaded"] == counted["published"]

            eventually(offloaded)
            of.end("first")
            assert of.answer("first", ids) == (expected, of.full(ids))
            assert of.call("first", "stats")["imported"] == sum(map(len, of.needed(of.full(ids))))
            of.same_bytes(ids, "first")
        finally:
            of.stop()


def test_where_vllm_hashes_more_finely_keys_come_from_the_tokens(daemon: PrivateDaemon) -> None:
    of = Sized(daemon.socket, "few heads", {"prefix_match_unit": 16})
    try:
        ids = prompt(290, seed=7)
        expected, _ = of.answer("plain", ids)
        assert of.answer("first", ids) == (expected, 0)
        assert of.answer("second", ids) == (expected, of.full(ids))
        assert "tokenizer_digest=0:\n" in of.call("second", "model")
        of.same_bytes(ids, "first", "second")
        turn = ids + expected + prompt(60, seed=8)
        assert of.answer("second", turn)[0] == of.answer("plain", turn)[0]
        of.same_bytes(turn, "second")
    finally:
        of.stop()
