"""Real engines with a draft model beside sliding windows and full attention: same tokens, bytes and proposals."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from kvclient.daemon import PrivateDaemon
from kvclient.vllm.releases import fails_by_request
from support.forked_worker import ForkedWorker
from support.small_models import EAGLE, EXAONE, GEMMA, LLAMA
from support.vllm_engines import ENGINE, prompt
from support.vllm_trio import Trio
from support.vllm_worker import BLOCK, ON_CPU

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)
if not fails_by_request():
    pytest.skip("this vLLM does not recover failed loads of several groups", allow_module_level=True)

WINDOW, FULL = 0, 1  # groups
#: The draft's weights are in a folder of their own, and on a CPU can't be read in memory.
OPTIONS = {"weights_digest": "small"}
SMALL = {"method": "draft_model", "model": {"num_hidden_layers": 1}, "num_speculative_tokens": 2}
#: The draft -> vLLM's speculative_config, the model, and how many blocks of a prompt vLLM has
#: computed in any case.
KINDS = {
    "eagle": ({"method": "eagle", "model": EAGLE, "num_speculative_tokens": 2}, GEMMA, 1),
    "eagle, other heads": (
        {"method": "eagle", "model": {**EAGLE, "num_key_value_heads": 1}, "num_speculative_tokens": 2},
        LLAMA,
        1,
    ),
    # In a group whose blocks have twice as many tokens as the others'
    "eagle, other heads beside windows": (
        {"method": "eagle", "model": {**EAGLE, "num_key_value_heads": 1}, "num_speculative_tokens": 2},
        GEMMA,
        1,
    ),
    # In a group of its own, which vLLM names
    "mtp": ({"method": "mtp", "num_speculative_tokens": 2}, EXAONE, 1),
    "model": (SMALL, LLAMA, 0),
    # vLLM's V1 model runner mistakes its blocks; see below
    **({} if ON_CPU else {"model beside windows": (SMALL, GEMMA, 0)}),
}
#: Kinds whose last group has blocks of 64 tokens.
SIZED = ("eagle, other heads beside windows",)


class Drafting(Trio):
    """Three engines with a draft."""

    def __init__(self, socket: str, kind: str) -> None:
        speculative, model, self.dropped = KINDS[kind]
        engine = {"speculative_config": speculative, "disable_log_stats": False}
        # If loads of several requests fail in a pool that these fill, vLLM 0.32 schedules none of
        # them
        few = 150 if kind in SIZED else 90 if model is EXAONE else 60
        tokens = 2 * BLOCK if kind in SIZED else BLOCK
        super().__init__(socket, model, engine, few=few, options=OPTIONS, tokens=tokens)
        self.model, self.windows = model, model is not LLAMA

    def full(self, ids: list[int]) -> int:
        # vLLM looks further where there are several groups
        seen = len(ids) if self.windows else len(ids) - 1
        return min(super().full(ids), (seen // self.tokens - self.dropped) * self.tokens)

    def draft_layers(self) -> list[str]:
        """A draft that reads hidden states has a layer after the model's, another model has names of its own."""
        names = [name for _, layers, _ in self.call("plain", "groups") for name in layers]
        if self.dropped:
            return [max(names)]
        return [name for name in names if name.startswith("draft_model.")]

    def same_bytes(self, ids: list[int], *names: str, drafts: bool = True) -> None:
        """What the engines have of a prompt has the bytes that an engine alone computes, of model and draft.

        ``drafts``: False: of the model alone. What a draft has at the last token before a step's end differs with where
        steps cut a prompt, without the connector, too.
        """
        without = () if drafts else tuple(self.draft_layers())
        self.call("plain", "generate", [ids], 1)
        computed, blocks = self.call("plain", "group_digests", ids, without), self.full(ids) // self.tokens
        assert sorted(computed[-1]) == list(range(blocks))
        assert (len(computed) > 1) == self.windows
        for name in names:
            assert self.call(name, "group_digests", ids, without) == computed, name


@pytest.fixture(scope="module", params=sorted(KINDS))
def of(daemon: PrivateDaemon, request: pytest.FixtureRequest) -> Iterator[Drafting]:
    trio = Drafting(daemon.socket, request.param)
    yield trio
    trio.stop()


def test_the_answer_is_the_models_own(of: Drafting) -> None:
    """Each proposal is checked by the model."""
    ids = prompt(203, seed=2)
    alone = ForkedWorker(ENGINE, None, 60, {}, of.model)
    try:
        assert [of.answer("plain", ids)[0]] == [given for given, _ in alone.call("generate", [ids], 16)]
    finally:
        alone.stop()


def test_an_engine_starts_from_what_another_one_computed(of: Drafting) -> None:
    for length in (203, 257, 256, 130):
        ids = prompt(length, seed=length)
        expected, cached = of.answer("plain", ids)
        assert cached == 0
        assert of.answer("first", ids) == (expected, 0)
        # What vLLM itself would find of its own
        assert of.answer("second", ids) == (expected, of.full(ids))
        of.same_bytes(ids, "first", "second")


def test_what_is_proposed_after_an_import_is_what_is_proposed_without(of: Drafting) -> None:
    """Each proposal depends on the draft's KV of the whole prompt."""
    ids = prompt(240, seed=31)
    of.answer("first", ids)
    given = []
    for name in ("plain", "second"):
        of.call(name, "watch_drafts")
        tokens, cached = of.answer(name, ids, 24)
        given.append((tokens, of.call(name, "take_drafts")[-12:]))
        assert (cached > 0) == (name == "second")
    assert given[0] == given[1]
    # Wrong bytes of the draft alone leave the answer as it is, and change what is proposed
    for layer in of.draft_layers():
        of.call("second", "spoil", layer, ids)
    tokens, cached = of.answer("second", ids, 24)
    assert cached == of.full(ids)
    assert tokens == given[0][0]
    assert of.call("second", "take_drafts")[-12:] != given[0][1]
    of.forget("second")


def test_a_prompt_that_goes_on_otherwise_has_the_last_block_computed(of: Drafting) -> None:
    """Its last position in the draft depends on the token after it, which the block's key does not tell."""
    ids = prompt(224, seed=12)
    of.answer("first", ids)
    other = ids[:160] + prompt(64, seed=13)
    expected, _ = of.answer("plain", other)
    found = (5 - of.dropped) * BLOCK
    if of.windows:
        # vLLM keeps windows at the ends of prompts
        found = 0 if of.dropped else 160
        assert of.answer("second", other)[0] == expected
    else:
        assert of.answer("second", other) == (expected, found)
    of.same_bytes(other, "second")


def test_a_conversation_goes_on_in_the_other_engine(of: Drafting) -> None:
    # vLLM keeps windows a block of all groups before a prompt's end
    ids = prompt(97 if of.tokens == BLOCK else 161, seed=4)
    for turn in range(4):
        expected, _ = of.answer("plain", ids, 20)
        got, cached = of.answer(("first", "second")[turn % 2], ids, 20)
        assert got == expected
        assert (cached > 0) == (turn > 0)
        ids = ids + got + prompt(40, seed=50 + turn)


def test_answers_stay_the_same_while_blocks_go_from_group_to_group(of: Drafting) -> None:
    prompts = [prompt(170, seed=40 + i % 10)[: 129 + i % 3] + prompt(30, seed=60 + i % 14) for i in range(24)]
    expected, given = of.traffic(prompts)
    assert given == [expected, expected, expected]


@pytest.mark.parametrize("every", [1, 3])
def test_failed_blocks_of_any_group_are_computed(of: Drafting, every: int) -> None:
    prompts = [prompt(140 + 15 * i, seed=100 * every + i) for i in range(4)]
    of.computes_what_failed(prompts, every)
    for ids in prompts:
        if of.tokens > BLOCK:
            # Of a prompt that steps have cut, vLLM may have freed a window's first block before it
            # gives blocks of all groups their hashes
            for name in ("first", "second"):
                of.answer(name, ids, 1)
        of.same_bytes(ids, "first", "second", drafts=False)


@pytest.mark.skipif(not ON_CPU, reason="the V2 model runner gives the draft its own blocks")
@pytest.mark.parametrize("shares", [False, True])
def test_a_model_as_draft_beside_windows_is_refused_since_vllm_lets_it_write_over_the_models_kv(
    daemon: PrivateDaemon, shares: bool
) -> None:
    engine = {"speculative_config": SMALL, "disable_log_stats": False}
    drafting = ForkedWorker(ENGINE, daemon.socket if shares else None, 60, OPTIONS, GEMMA, engine)
    try:
        if shares:
            assert "write to blocks of the first one" in drafting.call("reason")
            return
        # Without the connector, too
        alone = ForkedWorker(ENGINE, None, 60, {}, GEMMA)
        try:
            ids = prompt(203, seed=203)
            assert drafting.call("generate", [ids], 12) != alone.call("generate", [ids], 12), "vLLM is repaired"
        finally:
            alone.stop()
    finally:
        drafting.stop()
