"""Marketplace.generate is model.generate, whatever it is called with.

What can start from a prefix does, the rest goes to the model. And what a marketplace shares follows the model that it
was made for, as it is now.
"""

from __future__ import annotations

import copy
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from kvclient.daemon import PrivateDaemon
from kvclient.transformers import Marketplace, request
from support.models import VOCABULARY, config_of, make_model, prompt

PAD = 0
LENGTH = 100


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama")


@pytest.fixture
def market(kvmd: PrivateDaemon) -> Iterator[Callable[..., Marketplace]]:
    made: list[Marketplace] = []

    def make(model: Any, **options: Any) -> Marketplace:
        made.append(Marketplace(model, socket_path=kvmd.socket, min_prefix_tokens=16, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Recorder:
    """A streamer; what it was given."""

    def __init__(self) -> None:
        self.put_values: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.put_values.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.put_values.append([-1])


def same(one: Any, other: Any) -> None:
    """The same results: tokens and shapes exactly, logits but for rounding."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
        return
    assert one.keys() == other.keys()
    assert torch.equal(one.sequences, other.sequences)
    for name in ("scores", "logits"):
        assert len(one.get(name) or ()) == len(other.get(name) or ())
        for ours, theirs in zip(one.get(name) or (), other.get(name) or (), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    for name in ("attentions", "hidden_states"):
        shapes = [[[tuple(part.shape) for part in step] for step in each.get(name) or ()] for each in (one, other)]
        assert shapes[0] == shapes[1]


def both(market: Marketplace, ids: torch.Tensor, make: Callable[[], dict[str, Any]], seed: int = 0) -> None:
    """The two calls, each with arguments of its own and the same randomness."""
    outcomes: list[Any] = []
    for generate in (market.model.generate, market.generate):
        torch.manual_seed(seed)
        arguments = make()
        outcomes.append(generate(ids, **arguments))
        streamer = arguments.get("streamer")
        outcomes.append(streamer.put_values if streamer else None)
    same(outcomes[0], outcomes[2])
    assert outcomes[1] == outcomes[3]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{number}x": number for number in range(VOCABULARY - 1)}
    words["abcdef"] = VOCABULARY - 1  # StopStringCriteria puts that before each token
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0x")))


# Arguments that go with a prefix; of each combination some are chosen.
SAME: list[Callable[[], dict[str, Any]]] = [
    lambda: {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    lambda: {"do_sample": True, "min_p": 0.05, "typical_p": 0.9},
    lambda: {"do_sample": True, "epsilon_cutoff": 0.001, "eta_cutoff": 0.001},
    lambda: {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    lambda: {"encoder_repetition_penalty": 1.2, "encoder_no_repeat_ngram_size": 3},
    lambda: {"bad_words_ids": [[5], [6, 7]], "renormalize_logits": True},
    lambda: {"suppress_tokens": [3, 4, 5], "begin_suppress_tokens": [9], "remove_invalid_values": True},
    lambda: {"sequence_bias": {(11,): 5.0, (12, 13): -5.0}},
    lambda: {"min_new_tokens": 4, "eos_token_id": list(range(1, 400, 7)), "pad_token_id": 498},
    lambda: {"eos_token_id": [PAD, 3], "pad_token_id": PAD},
    lambda: {"forced_eos_token_id": 17, "exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 17},
    lambda: {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    lambda: {"attention_mask": torch.ones(1, LENGTH, dtype=torch.long)},
    lambda: {"attention_mask": torch.ones(1, LENGTH, dtype=torch.bool)},
    lambda: {"streamer": Recorder()},
    lambda: {"logits_processor": [lambda ids, scores: scores - (ids.sum() % 7) * (scores.argsort() % 5)]},
    lambda: {"stopping_criteria": [lambda ids, scores, **_: torch.tensor([bool(ids[0].sum() % 5 == 0)])]},
    lambda: {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(int(ids.sum()) % 3, 499, 3))},
    lambda: {"stop_strings": [f"w{number}x" for number in range(0, 499, 4)], "tokenizer": tokenizer()},
    lambda: {"max_new_tokens": None, "max_length": LENGTH + 5, "min_length": LENGTH + 3},
    lambda: {"generation_config": GenerationConfig(max_new_tokens=5, repetition_penalty=1.1)},
    lambda: {"generation_config": GenerationConfig(num_beams=1, use_cache=True, pad_token_id=498)},
    lambda: {"past_key_values": None, "num_beams": 1, "num_return_sequences": 1, "use_cache": True},
]


@pytest.mark.parametrize("seed", range(len(SAME) + 3))
def test_random_combinations_of_what_goes_with_a_prefix_give_the_same(
    market: Callable[..., Marketplace], model: Any, seed: int
) -> None:
    chooser = random.Random(seed)
    chosen = [SAME[seed % len(SAME)], *chooser.sample(SAME, chooser.randrange(3))]
    ours = market(model)
    ids = prompt(LENGTH, seed=chooser.randrange(3)).clamp(max=497)
    ours.generate(ids, max_new_tokens=1, do_sample=False)

    def make() -> dict[str, Any]:
        arguments: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
        for each in chosen:
            arguments.update(each())
        if "generation_config" in arguments:  # which fields of both at once is deprecated
            return {name: arguments[name] for name in arguments if name in request.SAME_ARGUMENTS}
        return arguments

    both(ours, ids, make, seed)
    assert ours.stats.bypassed == {}
    assert ours.stats.reused_tokens == 96


def with_pad(positions: slice) -> torch.Tensor:
    ids = prompt(LENGTH).clamp(min=1)
    ids[0, positions] = PAD
    return ids


def set_training(model: Any) -> None:
    model.model.layers[1].self_attn.train()


OTHERS: dict[str, tuple[str, Callable[[], torch.Tensor], Callable[[Any], dict[str, Any]]]] = {
    "left padding": ("padding", lambda: with_pad(slice(8)), lambda _: {"pad_token_id": PAD}),
    "pad in the middle": ("padding", lambda: with_pad(slice(50, 51)), lambda _: {"pad_token_id": PAD}),
    "pad at the end": ("padding", lambda: with_pad(slice(97, 100)), lambda _: {"pad_token_id": PAD}),
    "pad besides eos": ("padding", lambda: with_pad(slice(8)), lambda _: {"pad_token_id": PAD, "eos_token_id": [3]}),
    "pad of a config": (
        "padding",
        lambda: with_pad(slice(8)),
        lambda _: {"generation_config": GenerationConfig(max_new_tokens=6, pad_token_id=PAD)},
    ),
    "masked": (
        "attention_mask",
        lambda: prompt(LENGTH),
        lambda _: {"attention_mask": (torch.arange(100) > 3)[None].long()},
    ),
    "batch": ("batch", lambda: torch.cat([prompt(LENGTH), prompt(LENGTH, seed=1)]), lambda _: {}),
    "beams": ("beams", lambda: prompt(LENGTH), lambda _: {"num_beams": 2}),
    "sequences": ("beams", lambda: prompt(LENGTH), lambda _: {"num_return_sequences": 2, "do_sample": True}),
    "no cache": ("use_cache", lambda: prompt(LENGTH), lambda _: {"use_cache": False}),
    "own cache": (
        "past_key_values",
        lambda: prompt(LENGTH),
        lambda model: {"past_key_values": DynamicCache(config=model.config)},
    ),
    "static cache": ("cache_implementation", lambda: prompt(LENGTH), lambda _: {"cache_implementation": "static"}),
    "attentions": (
        "output_attentions",
        lambda: prompt(LENGTH),
        lambda _: {"output_attentions": True, "return_dict_in_generate": True},
    ),
    "hidden states": (
        "output_hidden_states",
        lambda: prompt(LENGTH),
        lambda _: {"output_hidden_states": True, "return_dict_in_generate": True},
    ),
    "prompt lookup": ("prompt_lookup_num_tokens", lambda: prompt(LENGTH), lambda _: {"prompt_lookup_num_tokens": 3}),
    "assistant": ("assistant_model", lambda: prompt(LENGTH), lambda model: {"assistant_model": model}),
    "guidance": ("guidance_scale", lambda: prompt(LENGTH), lambda _: {"guidance_scale": 1.5}),
    "chunked prefill": ("prefill_chunk_size", lambda: prompt(LENGTH), lambda _: {"prefill_chunk_size": 16}),
    "positions": ("position_ids", lambda: prompt(LENGTH), lambda _: {"position_ids": torch.arange(1, 101)[None]}),
    "custom loop": (
        "custom_generate",
        lambda: prompt(LENGTH),
        lambda _: {"custom_generate": lambda model, input_ids, **_: input_ids[:, :3]},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_go_with_a_prefix_goes_to_the_model_and_is_counted(
    market: Callable[..., Marketplace], model: Any, name: str
) -> None:
    reason, make_ids, arguments = OTHERS[name]
    ours = market(model)
    ids = make_ids()
    # The same tokens, found if they were looked for.
    chain = ids[:1]
    ours.generate(chain, max_new_tokens=1, do_sample=False, attention_mask=torch.ones_like(chain))

    def make() -> dict[str, Any]:
        given = arguments(model)
        return given if "generation_config" in given else {"max_new_tokens": 6, "do_sample": False, **given}

    both(ours, ids, make)
    assert ours.stats.bypassed == {reason: 1}
    assert ours.stats.reused_tokens == 0


def test_defaults_of_the_models_own_generation_config_count(market: Callable[..., Marketplace]) -> None:
    model = make_model("llama")
    model.generation_config.pad_token_id = PAD
    ours = market(model)
    both(ours, with_pad(slice(8)), lambda: {"max_new_tokens": 6, "do_sample": False})
    model.generation_config.num_beams = 2
    both(ours, prompt(LENGTH), lambda: {"max_new_tokens": 6, "do_sample": False})
    assert ours.stats.bypassed == {"padding": 1, "beams": 1}


@pytest.mark.parametrize("form", ["positional", "inputs", "input_ids", "with a config"])
def test_the_prompt_may_be_given_in_each_way(market: Callable[..., Marketplace], model: Any, form: str) -> None:
    ours = market(model)
    ids = prompt(LENGTH)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    config = GenerationConfig(**greedy)
    ours.generate(ids, **greedy)
    expected = model.generate(ids, **greedy)
    if form == "with a config":
        assert torch.equal(ours.generate(ids, config), expected)
    elif form == "positional":
        assert torch.equal(ours.generate(ids, **greedy), expected)
    else:
        assert torch.equal(ours.generate(**{form: ids}, **greedy), expected)
    assert ours.stats.reused_tokens == 96


def test_wrong_calls_raise_as_the_models(market: Callable[..., Marketplace], model: Any) -> None:
    ours = market(model)
    for arguments in (
        {"nonsense": 3},
        {"max_length": 3, "inputs": prompt(10), "input_ids": prompt(10)},
    ):
        raised = []
        for generate in (model.generate, ours.generate):
            with pytest.raises(ValueError) as error:  # noqa: PT011 - whatever the model says
                generate(*([] if "inputs" in arguments else [prompt(LENGTH)]), **arguments)
            raised.append(str(error.value))
        assert raised[0] == raised[1]


def test_a_model_in_training_under_autocast_or_compiled_is_left_alone(market: Callable[..., Marketplace]) -> None:
    model = make_model("llama")
    ours = market(model)
    ids = prompt(LENGTH)
    ours.generate(ids, max_new_tokens=1, do_sample=False)
    set_training(model)
    ours.generate(ids, max_new_tokens=1, do_sample=False)
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        both(ours, ids, lambda: {"max_new_tokens": 4, "do_sample": False})
    model.generate = lambda *_args, **_kwargs: "mine"
    assert ours.generate(ids) == "mine"
    assert ours.stats.bypassed == {"training": 1, "autocast": 1, "custom_generate": 1}


def test_nothing_that_generate_takes_is_unknown() -> None:
    """Fails with a release of Transformers that takes something new: look at it, then put it into a table."""
    parameters = {
        name
        for name, each in inspect.signature(GenerationMixin.generate).parameters.items()
        if each.kind != each.VAR_KEYWORD
    }
    assert parameters - {"self"} - request.SAME_ARGUMENTS - set(request.OTHER_ARGUMENTS) == set()
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields - request.SAME_SETTINGS - set(request.OTHER_SETTINGS) == set()
    assert not request.SAME_SETTINGS & set(request.OTHER_SETTINGS)


@pytest.mark.parametrize("where", ["argument", "config"])
def test_what_is_unknown_goes_to_the_model(model: Any, where: str) -> None:
    config = GenerationConfig()
    config.of_the_future = 1
    arguments = {
        "inputs": prompt(LENGTH),
        **({"of_the_future": 1} if where == "argument" else {"generation_config": config}),
    }
    assert request.bypass_reason(model, arguments) == "of_the_future"
    config.of_the_future = None
    assert request.bypass_reason(model, {"inputs": prompt(LENGTH), "generation_config": config}) is None


# ---- the model is still the one that the keys name -----------------------------------------------


def scale(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight *= 1.5


def merge(model: Any) -> None:
    model.model.layers[0].self_attn.v_proj.weight.data += 0.05


def swap(model: Any) -> None:
    first, second = (model.model.layers[i].self_attn.k_proj for i in range(2))
    first.weight, second.weight = second.weight, first.weight


@pytest.mark.parametrize("change", [scale, merge, swap])
def test_changed_weights_get_no_old_blocks_and_publish_none_until_refreshed(
    market: Callable[..., Marketplace], change: Callable[[Any], None]
) -> None:
    before = make_model("llama")
    model = copy.deepcopy(before)
    ours, peer = market(model), market(before)
    ids = prompt(LENGTH)
    greedy = {"max_new_tokens": 8, "do_sample": False}
    ours.generate(ids, **greedy)
    ours.region.flush(10.0)
    assert peer.fetch(ids).tokens == 96
    change(model)
    both(ours, ids, lambda: greedy)
    assert ours.stats.bypassed == {"weights_changed": 1}
    assert ours.fetch(ids).tokens == 0
    cache = ours.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert ours.publish(ids, cache) == 0
    assert ours.refresh()
    both(ours, ids, lambda: greedy)
    ours.region.flush(10.0)
    again = market(copy.deepcopy(model))
    both(again, ids, lambda: greedy)
    assert again.stats.blocks_imported == 6, "who has the same weights shares again"
    both(peer, ids, lambda: greedy)
    assert not ours.refresh(), "they are what they were"
    assert ours.fetch(ids).tokens == 96


def test_another_attention_at_run_time_is_another_model(market: Callable[..., Marketplace]) -> None:
    model = make_model("llama")
    ours = market(model)
    ids = prompt(LENGTH)
    ours.generate(ids, max_new_tokens=2, do_sample=False)
    model.set_attn_implementation("eager")
    both(ours, ids, lambda: {"max_new_tokens": 4, "do_sample": False})
    assert ours.stats.bypassed == {"config_changed": 1}
    assert ours.refresh()
    ours.generate(ids, max_new_tokens=2, do_sample=False)
    ours.region.flush(10.0)
    assert ours.fetch(ids).tokens == 96


def test_the_same_weights_share_whatever_path_or_commit_they_came_from(market: Callable[..., Marketplace]) -> None:
    one, other = make_model("llama"), make_model("llama")
    one.config._name_or_path, other.config._name_or_path = "/models/a", "/mnt/b"
    one.config._commit_hash = "1234"
    owner, importer = market(one), market(other)
    owner.generate(prompt(LENGTH), max_new_tokens=2, do_sample=False)
    owner.region.flush(10.0)
    assert importer.fetch(prompt(LENGTH)).tokens == 96


def test_weights_of_one_name_and_commit_that_differ_share_nothing(market: Callable[..., Marketplace]) -> None:
    one, other = make_model("llama"), make_model("llama", seed=1)
    for each in (one, other):
        each.config._name_or_path, each.config._commit_hash = "the/same", "1234"
    owner, importer = market(one), market(other)
    owner.generate(prompt(LENGTH), max_new_tokens=2, do_sample=False)
    owner.region.flush(10.0)
    assert importer.fetch(prompt(LENGTH)).tokens == 0


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rotation_that_follows_the_length_is_shared_only_where_it_does_not(
    market: Callable[..., Marketplace], kind: str
) -> None:
    config = config_of("llama")
    half = config.hidden_size // config.num_attention_heads // 2
    config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        config.rope_parameters |= {"short_factor": [1.0] * half, "long_factor": [3.0] * half}
    config.rope_parameters["original_max_position_embeddings"] = 128
    config.max_position_embeddings = 128 if kind == "dynamic" else 512
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ours = market(model)
    longer = prompt(200)
    for tokens, reason in ((100, {}), (100, {}), (200, {"rope_scaling": 1}), (100, {"rope_scaling": 1})):
        ids = longer[:, :tokens]
        both(ours, ids, lambda: {"max_new_tokens": 4, "do_sample": False})
        assert ours.stats.bypassed == reason
    assert ours.stats.reused_tokens == 2 * 96
    # A sequence that grows beyond is right, too, and nothing of it is published.
    published = ours.stats.blocks_published
    both(ours, longer[:, :120], lambda: {"max_new_tokens": 20, "do_sample": False})
    assert ours.stats.blocks_published == published
