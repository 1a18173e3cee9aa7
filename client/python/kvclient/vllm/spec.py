"""ModelSpec of an engine: every part of vLLM's configuration that changes the bytes of a KV block, and the weights.

A worker describes the engine without its weights (``spec_of``). The scheduler's side has the weights measured on all
ranks and adds them (``with_weights``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from kvclient._native import ModelSpec
from kvclient.errors import UnsupportedError
from kvclient.vllm.contents import Contents
from kvclient.vllm.fields import counted
from kvclient.vllm.options import ConnectorOptions

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "model.safetensors.index.json")


def spec_of(
    vllm_config: Any,
    kv_spec: Any,
    *,
    layout: str,
    backend: str,
    options: ConnectorOptions,
    block_tokens: int | None = None,
) -> ModelSpec:
    """Describe the engine exactly, except for its weights.

    ``kv_spec``: vLLM's KVCacheSpec of a layer. ``block_tokens``: of a name, if not the layer's. ``layout``:
    KvLayout.text, which tells how others differ. ``backend``: name of the attention backend, whose kernels decide the
    last bits of every layer's KV but the first one's.

    UnsupportedError: scales that change while the engine runs.
    """
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    if getattr(cache, "calculate_kv_scales", False):
        raise UnsupportedError(
            "calculate_kv_scales: the scale of a block depends on what ran before it; start without it"
        )
    settings = {"config": counted(vllm_config), "backend": backend, "device": _device()}
    text = json.dumps(settings, sort_keys=True, default=str)
    spec = ModelSpec(
        model_id=_short(options.model_id or _architecture(model)),
        revision="" if options.share_across_versions else _versions(),
        weights_digest="config=" + hashlib.sha256(text.encode()).hexdigest()[:32],
        # Keys consist of token ids, and the model alone determines what these compute
        tokenizer_digest="",
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
        block_tokens=block_tokens or kv_spec.block_size,
        sliding_window=getattr(kv_spec, "sliding_window", None) or 0,
        tp_size=parallel.tensor_parallel_size,
        pp_size=parallel.pipeline_parallel_size,
    )
    spec.validate()
    return spec


def of_all_stages(workers: Sequence[tuple[int, str]]) -> ModelSpec:
    """The spec of an engine of several workers, given each one's stage of the pipeline and ``spec_of`` (canonical).

    Stages may hold different layers, and so differ in layout; a key then means each stage's own, since a shard's key
    names the stage. UnsupportedError: they differ in anything else, or ranks of one stage differ.
    """
    layouts: dict[int, str] = {}
    texts: set[str] = set()
    for stage, canonical in workers:
        spec = ModelSpec.from_canonical(canonical)
        if layouts.setdefault(stage, spec.layout) != spec.layout:
            raise UnsupportedError("ranks of one stage of the pipeline hold their KV in different layouts")
        spec.layout = "of the stage"
        texts.add(spec.canonical())
    if len(texts) > 1:
        raise UnsupportedError("stages of the pipeline differ in more than the layers that they hold")
    whole = ModelSpec.from_canonical(workers[0][1])
    if len(set(layouts.values())) > 1:
        whole.layout = _short("/".join(layouts[stage] for stage in sorted(layouts)))
    return whole


def with_weights(spec: ModelSpec, weights: str, length: str = "") -> ModelSpec:
    """``spec_of``'s spec, completed with the weights and, where it decides positions, the longest prompt."""
    whole = ModelSpec.from_canonical(spec.canonical())
    whole.weights_digest = f"{spec.weights_digest};weights={weights}"
    if length:
        whole.rope = _short(f"{spec.rope};max_model_len={length}")
    whole.validate()
    return whole


def lengths_of(vllm_config: Any) -> str:
    """``max_model_len`` of the model, and of a draft."""
    draft = getattr(getattr(vllm_config, "speculative_config", None), "draft_model_config", None)
    lengths = [vllm_config.model_config.max_model_len]
    if draft is not None:
        lengths.append(draft.max_model_len)
    return ",".join(map(str, lengths))


def source_of(vllm_config: Any) -> str:
    """Identity of the weights by their source, for an engine whose weights can't be read in memory.

    UnsupportedError: the source does not identify them.
    """
    model, load = vllm_config.model_config, vllm_config.load_config
    commit = getattr(model.hf_config, "_commit_hash", None) or ""
    draft = getattr(getattr(vllm_config, "speculative_config", None), "draft_model_config", None)
    hidden = (
        "set weights_digest in kv_connector_extra_config, to the same text in every engine that has the weights of "
        f"{model.model}"
    )
    if draft is not None and draft.model != model.model:
        raise UnsupportedError(f"the weights can't be read in memory, and there is a draft model: {hidden}")
    if load.load_format == "dummy":  # drawn with the engine's seed, the same in every process
        return f"dummy:{model.seed}"
    if os.path.isdir(model.model):
        try:
            files = Contents().digest(model.model, _WEIGHTS)
        except OSError as error:
            raise UnsupportedError(f"{error}; {hidden}") from error
        if files:
            return f"files:{files}:{load.load_format}"
    elif commit:
        return f"commit:{commit}:{load.load_format}"
    raise UnsupportedError(f"nothing says what the weights are: {hidden}")


def _architecture(model: Any) -> str:
    names = getattr(model, "architectures", None) or getattr(model.hf_config, "architectures", None) or ()
    return "+".join(names) or str(getattr(model.hf_config, "model_type", "") or "model")


def _versions() -> str:
    try:
        from vllm import __version__ as version
    except ImportError:  # a test without vLLM
        version = "unknown"
    return f"vllm-{version};torch-{torch.__version__}"


def _device() -> str:
    precision = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}:{torch.cuda.get_device_capability()}:{precision}"
    return f"cpu:{torch.backends.cpu.get_cpu_capability()}:{precision}"


def _rope(model: Any) -> str:
    config = model.hf_text_config
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = getattr(config, "rope_theta", None)
    return json.dumps({"theta": theta, **dict(settings)}, sort_keys=True, default=str) if settings or theta else ""


def _short(text: str) -> str:
    return text if len(text.encode()) <= 400 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()


__all__ = ["lengths_of", "of_all_stages", "source_of", "spec_of", "with_weights"]
