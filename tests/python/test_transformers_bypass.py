"""Which calls may start from a prefix, one reason at a time: kvclient.transformers.request, without a daemon."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from kvclient.transformers import request
from support.models import make_model, prompt

IDS = prompt(20).clamp(min=10)
PADDED = torch.cat([torch.tensor([[3, 4]]), IDS], dim=1)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama")


def reason(model: Any, ids: Any = IDS, **arguments: Any) -> str | None:
    return request.bypass_reason(model, {"inputs": ids, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"inputs": IDS.int()},
        {"synced_gpus": False},
        {"past_key_values": None, "position_ids": None},
        {"num_beams": None, "output_attentions": None},
        {"guidance_scale": 1.0},
        {"generation_config": GenerationConfig(num_beams=4), "num_beams": 1},
        {"attention_mask": torch.ones_like(IDS)},
    ],
)
def test_a_plain_call_starts_from_a_prefix(model: Any, arguments: dict[str, Any]) -> None:
    assert request.bypass_reason(model, {"inputs": IDS, **arguments}) is None


@pytest.mark.parametrize(
    ("why", "arguments"),
    [
        ("batch", {"input_ids": IDS}),
        ("batch", {"inputs": IDS.tolist()}),
        ("batch", {"inputs": IDS[0]}),
        ("batch", {"inputs": IDS[:, :0]}),
        ("batch", {"inputs": IDS.float()}),
        ("batch", {"inputs": IDS.repeat(2, 1)}),
        ("synced_gpus", {"synced_gpus": True}),
        ("position_ids", {"position_ids": torch.arange(20)[None]}),
        ("generation_config", {"generation_config": SimpleNamespace(max_new_tokens=3)}),
        ("beams", {"generation_config": GenerationConfig(num_beams=2)}),
        ("beams", {"num_beams": torch.tensor(1)}),  # the model's matter
        ("use_cache", {"use_cache": "yes"}),
        ("attention_mask", {"attention_mask": (torch.arange(20) > 3)[None].long()}),
        ("attention_mask", {"attention_mask": torch.ones(1, 19)}),
        ("attention_mask", {"attention_mask": torch.ones(1, 1, 20, 20)}),
        ("attention_mask", {"attention_mask": [[1] * 20]}),
        ("attention_mask", {"attention_mask": {"full_attention": torch.ones(1, 20)}}),
    ],
)
def test_each_reason_against_a_prefix_is_named(model: Any, why: str, arguments: dict[str, Any]) -> None:
    assert request.bypass_reason(model, {"inputs": IDS, **arguments}) == why


@pytest.mark.parametrize(
    ("pad", "end", "padded"),
    [
        (3, None, True),
        (3, 5, True),
        (3, 3, False),
        (3, [5, 3], False),
        (torch.tensor(3), torch.tensor([5, 3]), False),
        (torch.tensor([3]), None, True),
        ([6, 3], [3], False),
        ([3, 4], [3], True),  # each of them counts
        (6, None, False),  # not in the prompt
    ],
)
def test_a_pad_token_that_ends_nothing_masks_the_prompt(model: Any, pad: Any, end: Any, padded: bool) -> None:
    found = reason(model, PADDED, pad_token_id=pad, **({} if end is None else {"eos_token_id": end}))
    assert found == ("padding" if padded else None)


def test_a_pad_token_must_be_an_end_token_of_each_configuration_that_may_count(model: Any) -> None:
    own = make_model("llama")
    own.generation_config.eos_token_id = 3
    config = GenerationConfig(pad_token_id=3, eos_token_id=5)
    assert reason(own, PADDED, generation_config=config) == "padding"
    config.eos_token_id = [5, 3]
    assert reason(own, PADDED, generation_config=config) is None


class Generating(torch.nn.Module):
    """A module that passes for ``base``, with settings of its own."""

    def __init__(self, base: Any, **own: Any) -> None:
        super().__init__()
        self.base, self.config, self.device = base, base.config, base.device
        self.generation_config = base.generation_config
        self.eval()
        for name, value in own.items():
            self.__dict__[name] = value

    def get_base_model(self) -> Any:
        return self.base


def test_an_adapter_with_virtual_tokens_goes_to_the_model(model: Any) -> None:
    for learning, why in ((True, "prompt_learning"), (False, None)):
        adapters = {"a": SimpleNamespace(is_prompt_learning=False), "b": SimpleNamespace(is_prompt_learning=learning)}
        assert reason(Generating(model, peft_config=adapters)) == why


def test_a_model_with_another_loop_goes_to_the_model() -> None:
    own = make_model("llama")
    own.generate = lambda *_args, **_kwargs: None
    assert reason(own) == "custom_generate"
    assert reason(Generating(own)) == "custom_generate"
    own = make_model("llama")
    own.__class__ = type("Own", (type(own),), {"generate": lambda *_args, **_kwargs: None})
    assert reason(own) == "custom_generate"


def test_encoders_and_compiled_models_go_to_the_model(model: Any) -> None:
    own = make_model("llama")
    own.config.is_encoder_decoder = True
    assert reason(own) == "encoder_decoder"
    assert reason(Generating(model, _orig_mod=model)) == "compiled"
    own = make_model("llama")
    own._compiled_call_impl = own.forward
    assert reason(own) == "compiled"
    assert reason(Generating(own)) == "compiled"


def test_one_module_in_training_is_enough() -> None:
    own = make_model("llama")
    own.model.layers[1].self_attn.train()
    assert reason(own) == "training"


def test_a_call_under_autocast_goes_to_the_model(model: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reason(model) == "autocast"


@pytest.mark.parametrize("name", sorted(request.OTHER_SETTINGS))
def test_each_other_setting_counts_where_it_is_given(model: Any, name: str) -> None:
    assert reason(model, **{name: object()}) in (name, "beams")
    config = GenerationConfig()
    setattr(config, name, object())
    assert reason(model, generation_config=config) in (name, "beams")


def test_a_setting_that_no_table_lists_may_have_its_default(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer(GenerationConfig):
        def __init__(self, of_the_future: int = 7) -> None:
            super().__init__()
            self.of_the_future = of_the_future

    monkeypatch.setattr(request, "GenerationConfig", Newer)
    monkeypatch.setattr(model, "generation_config", Newer())
    assert reason(model) is None
    assert reason(model, generation_config=Newer(8)) == "of_the_future"


def test_calls_that_generate_would_not_take_raise() -> None:
    with pytest.raises(TypeError, match="positional"):
        request.named_arguments([None] * 99, {})
    with pytest.raises(TypeError, match="inputs twice"):
        request.named_arguments([IDS], {"inputs": IDS})
