"""Which calls of ``generate()`` may start from a cached prefix: those whose result is known to stay the same.

The tables list every argument and setting of ``generate()`` by its effect on a call that starts from a prefix. A call
with one that no table lists (of a newer Transformers, of a model) does not start from a prefix. A test compares the
tables with the installed release.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

#: Arguments that get the whole prompt and each new token, with a cached prefix as without.
SAME_ARGUMENTS = frozenset(
    {
        "inputs",
        "input_ids",
        "generation_config",  # field by field: see below
        "attention_mask",  # if it masks nothing
        "logits_processor",
        "stopping_criteria",
        "prefix_allowed_tokens_fn",
        "streamer",
        "tokenizer",
    }
)

#: Arguments with which a call can't start from a prefix unless they are None, and the reason.
OTHER_ARGUMENTS: Mapping[str, str] = {
    "past_key_values": "a cache of the caller's",
    "cache": "a cache of the caller's, by its name since 5.24",
    "cache_params": "a cache of the caller's",
    "inputs_embeds": "blocks are named by token ids",
    "position_ids": "blocks hold the positions from 0 on",
    "cache_position": "blocks hold the positions from 0 on",
    "token_type_ids": "not part of a block's key",
    "head_mask": "not part of a block's key",
    "pixel_values": "not part of a block's key",
    "encoder_outputs": "cross attention is in no block",
    "decoder_input_ids": "cross attention is in no block",
    "decoder_attention_mask": "cross attention is in no block",
    "assistant_model": "another loop, whose cache can shrink",
    "assistant_tokenizer": "another loop, whose cache can shrink",
    "negative_prompt_ids": "a second prompt",
    "negative_prompt_attention_mask": "a second prompt",
    "custom_generate": "another loop",
    "trust_remote_code": "another loop",
    "use_model_defaults": "which of two configurations counts (until 4.57)",
    "synced_gpus": "the model is spread over processes",
    "logits_to_keep": "logits of the prompt",
    "labels": "a loss over the prompt",
}

#: Names of a caller's own cache.
CACHE_ARGUMENTS = ("past_key_values", "cache", "cache_params")

#: Fields of GenerationConfig that choose among the same logits, end the loop, or select the output
#: for new tokens.
SAME_SETTINGS = frozenset(
    {
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "max_time",
        "stop_strings",
        "early_stopping",  # of beams
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "length_penalty",  # of beams
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "renormalize_logits",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "sequence_bias",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "pad_token_id",  # where it is in the prompt: see _padding
        "bos_token_id",
        "eos_token_id",
        "decoder_start_token_id",  # of encoder-decoder models
        "disable_compile",  # of static caches
        # Of assisted decoding, which is chosen by arguments and fields that are not here.
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "max_matching_ngram_size",
        "assistant_lookbehind",
        "target_lookbehind",
        "assistant_ensemble_weight",
        "transformers_version",
    }
)

#: Fields with which a call can't start from a prefix, and the values with which it can, besides
#: None.
OTHER_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "low_memory": (False,),
    "use_mtp": (False,),
    "use_cache": (True,),
    "cache_implementation": (),
    "cache_config": (),
    "return_legacy_cache": (False,),
    "max_cache_len": (),
    "prefill_chunk_size": (),
    "compile_config": (),
    "continuous_batching_config": (),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "output_attentions": (False,),  # of the prompt, too
    "output_hidden_states": (False,),
    "is_assistant": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "speculation_type": (),
}

# Reasons in stats.bypassed whose names differ from the settings' names.
_REASONS = {"num_beams": "beams", "num_return_sequences": "beams"}


def named_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``generate(*args, **kwargs)`` by name. TypeError: that call would raise it, too."""
    names = _generate_parameters()
    if len(args) > len(names):
        raise TypeError(f"generate() takes at most {len(names)} positional arguments, not {len(args)}")
    positional = dict(zip(names, args, strict=False))
    if twice := positional.keys() & kwargs.keys():
        raise TypeError(f"generate() got {', '.join(sorted(twice))} twice")
    return {**positional, **kwargs}


def prompt_of(arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """Token ids [1, tokens] of a call; None: the call has no prompt of this form."""
    given = [arguments[name] for name in ("inputs", "input_ids") if arguments.get(name) is not None]
    if len(given) != 1 or not isinstance(given[0], torch.Tensor):
        return None
    ids = given[0]
    is_prompt = ids.dim() == 2 and ids.shape[0] == 1 and ids.shape[1] > 0
    return ids if is_prompt and ids.dtype in (torch.int32, torch.int64) else None


def bypass_reason(model: Any, arguments: Mapping[str, Any]) -> str | None:
    """The reason, in one word, why a call must go to the model unchanged; None if it may start from a prefix."""
    return _of_model(model) or _of_arguments(arguments) or _of_settings(model, arguments) or _of_mask(model, arguments)


def _of_model(model: Any) -> str | None:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if any(getattr(each, "is_prompt_learning", False) for each in _adapters(model)):
        return "prompt_learning"  # its virtual tokens come before the prompt's
    if type(base).generate is not GenerationMixin.generate or "generate" in vars(model) or "generate" in vars(base):
        return "custom_generate"
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder_decoder"
    if hasattr(model, "_orig_mod") or getattr(base, "_compiled_call_impl", None) is not None:
        return "compiled"
    if any(module.training for module in model.modules()):
        return "training"
    if torch.is_autocast_enabled(model.device.type):
        return "autocast"
    return None


def _adapters(model: Any) -> list[Any]:
    adapters = getattr(model, "peft_config", None)
    return list(adapters.values()) if isinstance(adapters, Mapping) else []


def _of_arguments(arguments: Mapping[str, Any]) -> str | None:
    settings = _known_settings()
    for name, value in arguments.items():
        if name in SAME_ARGUMENTS or name in settings or (value is None and name in OTHER_ARGUMENTS):
            continue
        if name == "synced_gpus" and value is False:
            continue
        return name
    return None if prompt_of(arguments) is not None else "batch"


def _of_settings(model: Any, arguments: Mapping[str, Any]) -> str | None:
    configs = [getattr(model, "generation_config", None), arguments.get("generation_config")]
    for config in configs:
        if config is not None and not isinstance(config, GenerationConfig):
            return "generation_config"
    names = dict.fromkeys(name for config in configs if config is not None for name in vars(config))
    names.update(dict.fromkeys(name for name in arguments if name in OTHER_SETTINGS))
    defaults = vars(GenerationConfig())
    for name in names:
        if name.startswith("_") or name in SAME_SETTINGS:
            continue
        # A field that no table lists may have its default value only.
        neutral = OTHER_SETTINGS.get(name, (defaults.get(name),))
        for value in _values(name, configs, arguments):
            if not any(_equal(value, other) for other in neutral):
                return _REASONS.get(name) or str(name)
    return None


def _equal(value: Any, other: Any) -> bool:
    return type(value) in (bool, int, float, type(other)) and bool(value == other)


def _values(name: str, configs: Sequence[Any], arguments: Mapping[str, Any]) -> list[Any]:
    """Values that a setting may have in this call: its argument, else those of the configurations. Without None."""
    if arguments.get(name) is not None:
        return [arguments[name]]
    values = [getattr(config, name, None) for config in configs if config is not None]
    return [value for value in values if value is not None]


def _of_mask(model: Any, arguments: Mapping[str, Any]) -> str | None:
    ids = prompt_of(arguments)
    assert ids is not None
    mask = arguments.get("attention_mask")
    if mask is None:
        return "padding" if _padding(model, arguments, ids) else None
    plain = isinstance(mask, torch.Tensor) and mask.shape == ids.shape and bool((mask == 1).all())
    return None if plain else "attention_mask"


def _padding(model: Any, arguments: Mapping[str, Any], ids: torch.Tensor) -> bool:
    """Whether ``generate()`` infers a mask: the pad token is in the prompt, and is not an end-of-sequence token."""
    configs = [getattr(model, "generation_config", None), arguments.get("generation_config")]
    ends = [_token_ids(value) for value in _values("eos_token_id", configs, arguments)]
    for pad in _values("pad_token_id", configs, arguments):
        for token in _token_ids(pad):
            if bool((ids == token).any()) and not (ends and all(token in each for each in ends)):
                return True
    return False


def _token_ids(value: Any) -> set[int]:
    if isinstance(value, torch.Tensor):
        value = value.reshape(-1).tolist()
    return {int(each) for each in value} if isinstance(value, (list, tuple, set)) else {int(value)}


def _known_settings() -> set[str]:
    return set(SAME_SETTINGS) | set(OTHER_SETTINGS)


def _generate_parameters() -> list[str]:
    parameters = inspect.signature(GenerationMixin.generate).parameters.values()
    # All but self.
    return [each.name for each in parameters if each.kind is not each.VAR_KEYWORD][1:]


__all__ = [
    "CACHE_ARGUMENTS",
    "OTHER_ARGUMENTS",
    "OTHER_SETTINGS",
    "SAME_ARGUMENTS",
    "SAME_SETTINGS",
    "bypass_reason",
    "named_arguments",
    "prompt_of",
]
