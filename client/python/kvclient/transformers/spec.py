"""ModelSpec of a Hugging Face model: every field that changes the bytes of its KV blocks.

What ModelSpec has a field for goes there, so that a difference is named. Everything else in the
configuration that changes the computation (activation, norm epsilon, biases, attention kernels, …) goes into
``weights_digest`` as a digest, together with that of the weights in memory: a name, a path or a commit identifies
the files that were loaded, not later changes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kvclient._native import ModelSpec
from kvclient.errors import UnsupportedError
from kvclient.weights import parameters_digest, tensors_of

# Rotary embeddings that depend on the position alone; "dynamic" and "longrope" depend on the
# sequence's length, too.
_STATIC_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}

#: Order of a block's bytes: for each layer K then V, each [kv_heads, block_tokens, head_size].
LAYOUT = "HND"

# These differ between processes without changing a byte of the KV cache, or ModelSpec has a field
# for them.
_IRRELEVANT = {
    "_name_or_path",
    "name_or_path",
    "architectures",
    "transformers_version",
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "torch_dtype",
    "dtype",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "tokenizer_class",
    "task_specific_params",
    "initializer_range",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "num_hidden_layers",
    "n_layer",
    "num_key_value_heads",
    "head_dim",
}


def spec_of(
    model: Any,
    *,
    block_tokens: int = 16,
    model_id: str | None = None,
    revision: str | None = None,
    weights_digest: str | None = None,
    tokenizer: Any = None,
) -> ModelSpec:
    """Describe ``model``, a causal language model of Transformers, exactly.

    ``weights_digest``: identity of the weights, if the caller knows it; by default the digest of all tensors that the
    model computes with (``kvclient.weights.parameters_digest``), each read once. ``model_id``: by default the model's
    type, so that the same weights at two paths share. ``revision``: shown by ``near_misses``; default none.
    ``tokenizer``: included as the digest of its vocabulary and settings.

    UnsupportedError: a cache with other layers than full and sliding-window attention, or weights that can't be read
    here (offloaded, spread over processes) without a ``weights_digest``.
    """
    config = model.config.get_text_config(decoder=True)
    layers = attention_layers(model.config)
    windows = {layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)}
    if len(windows) > 1:
        raise UnsupportedError(f"layers with different sliding windows {sorted(windows)}")
    computation = f"config={computation_digest(model)};weights={weights_digest or digest_weights(model)}"
    heads = config.num_attention_heads
    spec = ModelSpec(
        model_id=model_id or config.model_type,
        revision=revision or "",
        weights_digest=computation,
        tokenizer_digest=digest_tokenizer(tokenizer) if tokenizer is not None else "",
        rope=rope_of(config),
        kv_dtype=str(model.dtype).removeprefix("torch."),
        layout=LAYOUT,
        quantization=_quantization(config),
        num_layers=len(layers),
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        block_tokens=block_tokens,
        sliding_window=windows.pop() if windows else 0,
    )
    spec.validate()
    return spec


def attention_layers(config: Any) -> list[DynamicLayer]:
    """Empty cache layers of a model, one for each of its layers.

    UnsupportedError: one of them is neither full nor sliding-window attention.
    """
    text_config = config.get_text_config(decoder=True)
    others = set(getattr(text_config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others or not hasattr(text_config, "num_attention_heads"):
        raise UnsupportedError(
            f"a {config.model_type} has layers without KV blocks: {sorted(others) or 'no attention'}"
        )
    layers: list[DynamicLayer] = DynamicCache(config=config).layers
    for index, layer in enumerate(layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedError(f"layer {index} keeps its state in a {type(layer).__name__}, not in KV blocks")
    if len(layers) != text_config.num_hidden_layers:
        raise UnsupportedError("layers that share their KV cache")
    return layers


def rope_of(config: Any) -> str:
    """Canonical position settings, the same text for every version of Transformers: ``theta=…;type=…``."""
    settings = getattr(config, "rope_parameters", None)
    if not settings:
        theta = getattr(config, "rope_theta", None)
        if theta is None:
            return f"learned={config.max_position_embeddings}"
        settings = {"rope_theta": theta, **(getattr(config, "rope_scaling", None) or {})}
    text = ";".join(_flat("", dict(settings)))
    return text if len(text) <= 400 else "sha256=" + hashlib.sha256(text.encode()).hexdigest()


def _flat(prefix: str, settings: dict[str, Any]) -> list[str]:
    nested = any(isinstance(value, dict) for value in settings.values())
    if not nested and "rope_type" not in settings:
        settings = {**settings, "rope_type": settings.get("type", "default")}
    items = []
    for name in sorted(settings):
        value = settings[name]
        if isinstance(value, dict):
            items += _flat(f"{prefix}{name}.", value)
        elif name != "type" and value is not None:
            if isinstance(value, (list, tuple)):
                text = ",".join(repr(float(each)) for each in value)
            else:
                text = repr(float(value)) if isinstance(value, (int, float)) else str(value)
            items.append(f"{prefix}{name.removeprefix('rope_')}={text}")
    return items


def computation_digest(model: Any) -> str:
    """Digest of the configuration's settings of the computation that ModelSpec has no field for; 16 hex digits.

    With the attention implementation: its kernels add in another order, which changes the last bits of
    every layer's KV but the first one's. So do those of another kind of device.
    """
    config = model.config.get_text_config(decoder=True)
    settings = {name: value for name, value in config.to_dict().items() if name not in _IRRELEVANT}
    for name in ("_attn_implementation", "_experts_implementation"):
        settings[name.removeprefix("_")] = getattr(config, name, None)
    settings["device"] = model.device.type
    settings["matmul_precision"] = torch.get_float32_matmul_precision()
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_weights(model: torch.nn.Module) -> str:
    """Digest of all tensors that a model computes with: names, dtypes, shapes, bytes; 64 hex digits."""
    moving = rope_buffers(model)
    return parameters_digest({name: tensor for name, tensor in tensors_of(model).items() if name not in moving})


def rope_buffers(model: torch.nn.Module) -> set[str]:
    """Names of the buffers that the rotary embedding rewrites with the sequence's length; none for most models."""
    if static_positions(model.config) is None:
        return set()
    return {name for name, _ in model.named_buffers() if name.endswith("inv_freq")}


def static_positions(config: Any) -> int | None:
    """The length from which on the rotary embedding of *all* tokens depends on the length; None: it never does."""
    text_config = config.get_text_config(decoder=True)
    settings = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    nested = [each for each in settings.values() if isinstance(each, dict)] or [settings]
    limits = []
    for each in nested:
        kind = each.get("rope_type", each.get("type")) or "default"
        if kind in _STATIC_ROPE:
            continue
        lengths = (
            each.get("original_max_position_embeddings"),
            getattr(text_config, "original_max_position_embeddings", None),
            text_config.max_position_embeddings,
        )
        # No length of an unknown kind of rope is static.
        limits.append(min(filter(None, lengths)) if kind in ("dynamic", "longrope") else 0)
    return min(limits) if limits else None


def digest_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer: its own serialised form where it has one, else its vocabulary; 64 hex digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _quantization(config: Any) -> str:
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return ""
    method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown")


__all__ = [
    "LAYOUT",
    "attention_layers",
    "computation_digest",
    "digest_tokenizer",
    "digest_weights",
    "rope_buffers",
    "rope_of",
    "spec_of",
    "static_positions",
]
