"""ModelSpec of a Hugging Face model: every field that changes the bytes of its KV blocks.

What ModelSpec has a field for goes there, so that a difference is named. Everything else in the
configuration that changes the computation (activation, norm epsilon, biases, attention kernels, …) goes into
``weights_digest`` as a digest, together with that of the weights where no revision stands for them.
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

#: Order of a block's bytes: for each layer K then V, each [kv_heads, block_tokens, head_size].
LAYOUT = "HND"

# Differ between processes without changing a byte of the KV cache, or have a field of their own.
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

    ``model_id``: default the name it was loaded by where a revision says what the weights are, else its class.
    ``revision``: commit of its weights;
    default the one it was loaded from the hub with. Without a revision the weights themselves are hashed,
    which reads all of them once, unless ``weights_digest`` says what they are.
    ``tokenizer``: included by the digest of its vocabulary and settings.

    UnsupportedError: a cache with other layers than full and sliding-window attention, position embeddings that depend
    on the length of a request.
    """
    config = model.config.get_text_config(decoder=True)
    _check_rope(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    layers = attention_layers(model.config)
    windows = {layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)}
    if len(windows) > 1:
        raise UnsupportedError(f"layers with different sliding windows {sorted(windows)}")
    revision = revision if revision is not None else getattr(model.config, "_commit_hash", None) or ""
    computation = "config=" + config_digest(config)
    if weights_digest is not None:
        computation += ";weights=" + weights_digest
    elif not revision:
        computation += ";weights=" + digest_weights(model)
    heads = config.num_attention_heads
    # Where the weights' content is known, it doesn't matter what they were loaded by: two mounts of one model share.
    loaded_by = "" if "weights=" in computation else getattr(model.config, "name_or_path", "")
    name = loaded_by or type(model).__name__
    spec = ModelSpec(
        model_id=model_id or name,
        revision=revision,
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


# Their factors follow from the model alone. Those of others (dynamic, longrope) follow from the length of each request,
# so that the same tokens have other KV bytes in a longer one.
_FIXED_ROPE = ("default", "linear", "llama3", "yarn", "mrope", "proportional")


def _check_rope(settings: Any) -> None:
    """UnsupportedError: position embeddings that are not the same in every request."""
    if not isinstance(settings, dict):
        return
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in _FIXED_ROPE:
        raise UnsupportedError(f"position embeddings of type {kind} depend on the length of the request")
    for inner in settings.values():
        _check_rope(inner)


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


def config_digest(config: Any) -> str:
    """Digest of what a configuration says of the computation besides ModelSpec's own fields; 16 hex digits.

    With the implementations of attention and experts: their kernels add in another order, which changes the last bits
    of every layer's KV but the first one's.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in _IRRELEVANT}
    settings["attn_implementation"] = getattr(config, "_attn_implementation", None)
    settings["experts_implementation"] = getattr(config, "_experts_implementation", None)
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights: names, dtypes, shapes, bytes. Reads them all, on the CPU; 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


__all__ = ["LAYOUT", "attention_layers", "config_digest", "digest_tokenizer", "digest_weights", "rope_of", "spec_of"]
