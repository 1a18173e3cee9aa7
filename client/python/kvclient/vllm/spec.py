"""ModelSpec of an engine: every part of vLLM's configuration that changes the bytes of a KV block."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from kvclient._native import ModelSpec
from kvclient.errors import UnsupportedError
from kvclient.vllm.keys import digest_files

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "model.safetensors.index.json")

# Of the Hugging Face configuration: does not change the computation, or has a field of its own.
_IRRELEVANT = ("_name_or_path", "transformers_version", "use_cache", "bos_token_id", "eos_token_id")


def spec_of(vllm_config: Any, kv_spec: Any, *, layout: str, backend: str, weights_digest: str = "") -> ModelSpec:
    """Describe the engine's model exactly.

    ``kv_spec``: vLLM's KVCacheSpec of the only KV-cache group. ``layout``: KvLayout.text. ``backend``: name of the
    attention backend, whose kernels decide the last bits of every layer's KV but the first one's.
    ``weights_digest``: what the weights are, if the caller knows.

    UnsupportedError: nothing says what the weights are, or scales that change while the engine runs.
    """
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    if getattr(cache, "calculate_kv_scales", False):
        raise UnsupportedError("calculate_kv_scales: the scale of a block depends on what ran before it")
    revision, weights = _weights(vllm_config, weights_digest)
    settings = {
        "config": {key: value for key, value in model.hf_config.to_dict().items() if key not in _IRRELEVANT},
        "model_dtype": str(model.dtype),
        "enforced": str(getattr(model, "hf_overrides", None) or ""),
        "backend": backend,
        "weights": weights,
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    spec = ModelSpec(
        model_id=_short(model.model),
        revision=revision,
        weights_digest=hashlib.sha256(text.encode()).hexdigest()[:32],
        tokenizer_digest="",  # keys are made of token ids; what they mean follows from the model
        rope=_short(_rope(model)),
        kv_dtype=str(getattr(kv_spec, "dtype", cache.cache_dtype)).removeprefix("torch."),
        kv_scales=""
        if str(cache.cache_dtype) in ("auto", "bfloat16", "float16", "float32")
        else str(cache.cache_dtype),
        layout=layout,
        quantization=str(model.quantization or ""),
        num_layers=int(model.hf_text_config.num_hidden_layers),
        num_kv_heads=model.get_total_num_kv_heads(),
        head_size=kv_spec.head_size,
        block_tokens=kv_spec.block_size,
        sliding_window=getattr(kv_spec, "sliding_window", None) or 0,
        tp_size=parallel.tensor_parallel_size,
        pp_size=parallel.pipeline_parallel_size,
    )
    spec.validate()
    return spec


def _weights(vllm_config: Any, given: str) -> tuple[str, str]:
    model, load = vllm_config.model_config, vllm_config.load_config
    commit = getattr(model.hf_config, "_commit_hash", None) or ""
    if given:
        return commit, given
    if load.load_format == "dummy":  # drawn with the engine's seed, the same in every process
        return commit, f"dummy:{model.seed}"
    if os.path.isdir(model.model):
        files = digest_files(model.model, _WEIGHTS)
        if files:
            return commit, f"files:{files}:{load.load_format}"
    elif commit:
        return commit, f"commit:{load.load_format}"
    raise UnsupportedError(
        f"nothing says what the weights of {model.model} are: set weights_digest in kv_connector_extra_config, "
        "to the same text in every engine that has the same weights"
    )


def _rope(model: Any) -> str:
    config = model.hf_text_config
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = getattr(config, "rope_theta", None)
    return json.dumps({"theta": theta, **dict(settings)}, sort_keys=True, default=str) if settings or theta else ""


def _short(text: str) -> str:
    return text if len(text.encode()) <= 400 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()


__all__ = ["spec_of"]
