"""Real engines of models with states (linear attention) beside attention: same tokens and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from kvclient.daemon import PrivateDaemon
from kvclient.vllm.releases import fails_by_request
from support.forked_worker import ForkedWorker
from support.small_models import QWEN_NEXT
from support.vllm_engines import ENGINE, prompt
from support.vllm_trio import Trio
from support.vllm_worker import BLOCK

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)
if not torch.cpu._is_avx512_bf16_supported():
    pytest.skip("vLLM's linear attention on a CPU needs AVX-512 with bfloat16", allow_module_level=True)
if not fails_by_request():
    pytest.skip("this vLLM does not recover failed loads of several groups", allow_module_level=True)

TOKENS = 2 * BLOCK  # of a block, which has room for a state
STATES, ATTENTION = 0, 1  # groups


class States(Trio):
    """Three engines of a model with states."""

    def __init__(self, socket: str) -> None:
        super().__init__(socket, QWEN_NEXT, {"dtype": "bfloat16"}, tokens=TOKENS, few=24)

    def same_bytes(self, ids: list[int], *names: str) -> None:
        """What the engines have of a prompt has the bytes that an engine alone computes, in both groups."""
        computed, last = self.computed(ids), self.full(ids) // TOKENS - 1
        assert list(computed[STATES]) == [last]
        assert sorted(computed[ATTENTION]) == list(range(last + 1))
        for name in names:
            assert self.call(name, "group_digests", ids) == computed, name


@pytest.fixture(scope="module")
def of(daemon: PrivateDaemon) -> Iterator[States]:
    trio = States(daemon.socket)
    yield trio
    trio.stop()


def test_answers_depend_on_the_whole_prompt(of: States) -> None:
    ids = prompt(203, seed=2)
    for changed in (0, 1, 40, 101, 180):
        other = [*ids[:changed], ids[changed] + 1, *ids[changed + 1 :]]
        one, two = of.answers("plain", [ids, other], 16)
        assert one != two, changed


def test_an_engine_starts_from_what_another_one_computed(of: States) -> None:
    ids = prompt(203)
    expected, cached = of.answer("plain", ids)
    assert cached == 0
    assert of.answer("first", ids) == (expected, 0)
    before = of.call("second", "stats")["imported"]
    assert of.answer("second", ids) == (expected, of.full(ids))
    # All blocks of attention and the last state
    assert of.call("second", "stats")["imported"] - before == of.full(ids) // TOKENS + 1
    of.same_bytes(ids, "first", "second")


def test_a_prompt_computed_in_pieces_is_found_where_states_are(of: States) -> None:
    """Each step computes 256 tokens at most, but vLLM keeps the state at the last full block alone."""
    ids = prompt(450, seed=8)
    expected, _ = of.answer("plain", ids)
    assert of.answer("first", ids) == (expected, 0)
    assert of.answer("second", ids) == (expected, of.full(ids))
    of.same_bytes(ids, "first", "second")
    shorter = ids[:300] + prompt(80, seed=9)
    expected, _ = of.answer("plain", shorter)
    assert of.answer("second", shorter) == (expected, 0)


def test_a_prefix_without_a_state_at_its_end_is_computed(of: States) -> None:
    ids = prompt(203, seed=10)
    of.answer("first", ids)
    other = ids[:180] + prompt(60, seed=11)
    expected, _ = of.answer("plain", other)
    assert of.answer("second", other) == (expected, 0)


def test_a_conversation_goes_on_in_the_other_engine(of: States) -> None:
    """It is found as far as its last prompt; the answer crosses blocks, and the running state with it."""
    ids, states = prompt(97, seed=4), 0
    # With two bytes a number, what is decoded and what is prefilled differ in their last bits, and
    # a further turn may begin with either.
    for turn in range(2):
        here = ("first", "second")[turn % 2]
        expected, _ = of.answer("plain", ids, 70)
        assert of.answer(here, ids, 70) == (expected, states)
        states = of.full(ids)
        ids = ids + expected + prompt(10, seed=50 + turn)


def test_answers_stay_the_same_while_blocks_go_from_group_to_group(of: States) -> None:
    """More prefixes than the second engine has blocks, so that it evicts, withdraws and imports all the time.

    Which requests a step computes together changes last bits, and with them a token where two are nearly as likely:
    seen in one of 120 answers, which wrong bytes would change throughout.
    """
    prompts = [prompt(170, seed=40 + i % 10)[: 129 + i % 3] + prompt(30, seed=60 + i % 14) for i in range(40)]
    expected, given = of.traffic(prompts)
    for answers in given:
        same = [one == other for one, other in zip(answers, expected, strict=True)]
        assert sum(same) >= len(prompts) - 2, same


@pytest.mark.parametrize("every", [1, 2, 3])
def test_failed_blocks_of_any_group_are_computed(of: States, every: int) -> None:
    prompts = [prompt(140 + 15 * i, seed=100 * every + i) for i in range(4)]
    of.computes_what_failed(prompts, every)
    for ids in prompts:
        of.same_bytes(ids, "first", "second")


def test_a_state_that_failed_and_was_used_would_change_the_answer(of: States) -> None:
    """The tests above see wrong bytes in a state."""
    ids = prompt(203, seed=304)
    expected, _ = of.answer("plain", ids)
    of.answer("first", ids)
    with of.failing("second", 1, reported=False, depth=of.full(ids) // TOKENS - 1):
        got, cached = of.answer("second", ids)
    of.forget("second")
    assert cached == of.full(ids)
    assert got != expected


@pytest.mark.skipif(find_spec("numba") is None, reason="vLLM's ngram speculation needs numba")
def test_speculation_beside_states_is_refused(daemon: PrivateDaemon) -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    other = ForkedWorker(
        ENGINE, daemon.socket, 60, {}, QWEN_NEXT, {"dtype": "bfloat16", "speculative_config": speculative}
    )
    try:
        assert "start without speculative_config" in other.call("reason")
    finally:
        other.stop()
