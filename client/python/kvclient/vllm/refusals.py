"""Engines whose blocks can't be shared exactly: why, and what to do. docs/ENGINES.md has the same as a table."""

from __future__ import annotations

from typing import Any

# Specs of vLLM whose blocks hold the KV of their tokens and nothing else.
_SLIDING = ("SlidingWindowSpec", "SlidingWindowMLASpec", "ChunkedLocalAttentionSpec")


def refusal(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why the connector is off with this engine; "" if it is on."""
    if kv_cache_config is None:
        return "this vLLM does not tell connectors its KV-cache configuration: 0.26 and newer do"
    groups = kv_cache_config.kv_cache_groups
    if not groups:
        return "the model has no KV cache, so there is nothing to share: start it without the connector"
    kinds = [type(group.kv_cache_spec).__name__ for group in groups]
    if len(groups) > 1:
        return _several(kinds)
    if kinds[0] == "UniformTypeKVCacheSpecs":
        return (
            "layers have KV of different sizes in one block (a sparse-attention indexer, or a draft model with other "
            "heads than the model), which is not supported; if it is the draft, start without speculative_config"
        )
    if not hasattr(groups[0].kv_cache_spec, "head_size"):
        return f"the model keeps a state instead of the KV of each token ({kinds[0]}), which is not supported"
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"{name} is above 1, which spreads a block's tokens over ranks: set it to 1"
    return ""


def _several(kinds: list[str]) -> str:
    listed = ", ".join(sorted(set(kinds)))
    text = f"the model has {len(kinds)} KV-cache groups ({listed}), and only one is supported"
    if all(kind == "FullAttentionSpec" or kind in _SLIDING for kind in kinds):
        return f"{text}: --disable-hybrid-kv-cache-manager makes one of them, which takes more memory"
    return f"{text}; nothing makes one of them"


__all__ = ["refusal"]
