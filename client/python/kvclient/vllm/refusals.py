"""Engines whose blocks can't be shared exactly: why, and what to do. docs/ENGINES.md has the same as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvclient.vllm.groups import attends, keeps_state, kinds_of, layer_specs
from kvclient.vllm.runner import uses_v2_runner

# Specs that vLLM can treat as full attention, so that one group is left.
_PROMOTED = ("FullAttentionSpec", "SlidingWindowSpec", "SlidingWindowMLASpec", "ChunkedLocalAttentionSpec")
_DISABLE = "--disable-hybrid-kv-cache-manager makes one of them, which takes more memory"


def refusal(vllm_config: Any, kv_cache_config: Any, *, by_request: bool = True, load: str = "async") -> str:
    """Why the connector is off with this engine; "" if it is on.

    ``by_request``: vLLM's scheduler takes requests whose load failed. ``load``: the connector's option.
    """
    if kv_cache_config is None:
        return "this vLLM does not tell connectors its KV-cache configuration: 0.26 and newer do"
    groups = kv_cache_config.kv_cache_groups
    if not groups:
        return "the model has no KV cache, so there is nothing to share: start it without the connector"
    specs = [group.kv_cache_spec for group in groups]
    if len(groups) > 1:
        reason = _several(groups, by_request, load) or _states(specs, vllm_config) or _draft(groups, vllm_config)
        if reason:
            return reason
    elif kinds_of(specs[0]) != [type(specs[0]).__name__] and not attends(specs[0]):
        return (
            f"layers have KV of different sizes in one block, not all of them of full attention "
            f"({', '.join(kinds_of(specs[0]))}), which is not supported"
        )
    elif not attends(specs[0]) and not hasattr(specs[0], "head_size"):
        kind = type(specs[0]).__name__
        return f"the model keeps a state instead of the KV of each token ({kind}), which is not supported"
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            return f"{name} is above 1, which spreads a block's tokens over ranks: set it to 1"
    return ""


def _several(groups: Sequence[Any], by_request: bool, load: str) -> str:
    kinds = sorted({kind for group in groups for kind in kinds_of(group.kv_cache_spec)})
    text = f"the model has {len(groups)} KV-cache groups ({', '.join(kinds)})"
    specs = [group.kv_cache_spec for group in groups]
    if not all(attends(spec) or keeps_state(spec) for spec in specs):
        remedy = _DISABLE if all(kind in _PROMOTED for kind in kinds) else "nothing makes one of them"
        return f"{text}, and not all of them are full attention, windows, chunks or states: {remedy}"
    if not by_request:
        return (
            f"{text}, and this vLLM recovers a failed load of one group only: vLLM 0.30 and newer of several; or "
            f"{_DISABLE}"
        )
    sizes = sorted({spec.block_size for spec in specs})
    if len(sizes) > 1:
        # Layers with less KV for a token have more tokens in a page of the size that all have.
        text += f" whose blocks hold different numbers of tokens ({' and '.join(map(str, sizes))})"
        if any(keeps_state(spec) for spec in specs):
            return f"{text}, and states, parts of whose blocks vLLM then finds, too: this is not supported"
        if any("ChunkedLocalAttentionSpec" in kinds_of(spec) for spec in specs):
            return f"{text}, of which vLLM finds no prefix beside attention in chunks: {_DISABLE}"
    if load == "sync":
        return f"{text}, which vLLM can load in the background only: use load=async"
    return ""


def _draft(groups: Sequence[Any], vllm_config: Any) -> str:
    """Of a draft to which vLLM's V1 runner gives the block table of the first group, whichever its layers are in.

    ``GPUModelRunner._build_attention_metadata`` looks for the group of proposers that read hidden states, of the other
    ones not. Such a draft writes over the model's own KV, and answers are not the model's (seen with 0.32).
    """
    method = getattr(getattr(vllm_config, "speculative_config", None), "method", None)
    if method not in ("draft_model", "custom_class") or uses_v2_runner(vllm_config):
        return ""
    layers = [name for group in groups[1:] for name in group.layer_names]
    if method == "draft_model" and not any(name.startswith("draft_model.") for name in layers):
        return ""
    return (
        f"the model has {len(groups)} KV-cache groups, and vLLM's V1 model runner has a draft of the method {method} "
        f"write to blocks of the first one, which are the model's: start without speculative_config, or {_DISABLE}"
    )


def _states(specs: Sequence[Any], vllm_config: Any) -> str:
    """Of a model with Mamba, linear attention or short convolutions in groups of their own."""
    states = [layer for spec in specs if keeps_state(spec) for layer in layer_specs(spec)]
    if not states:
        return ""
    if all(keeps_state(spec) for spec in specs):
        return "all KV-cache groups are of states, none of attention, so that there is no KV of tokens to share"
    if any(getattr(spec, "mamba_cache_mode", "") != "align" for spec in states):
        return (
            "the model has states, which this vLLM does not keep at block boundaries: start it with prefix caching and "
            "--mamba-cache-mode align"
        )
    drafts = getattr(vllm_config, "speculative_config", None) is not None
    if drafts or any(getattr(spec, "num_speculative_blocks", 0) for spec in states):
        return (
            "the model has states, of which vLLM moves one between blocks after it has verified drafts: start without "
            "speculative_config"
        )
    unit = getattr(getattr(vllm_config, "cache_config", None), "prefix_match_unit", None)
    if unit not in (None, specs[0].block_size):
        return (
            f"the model has states, which vLLM keeps within blocks as well if prefix_match_unit is {unit}: start "
            "without it"
        )
    return ""


__all__ = ["refusal"]
