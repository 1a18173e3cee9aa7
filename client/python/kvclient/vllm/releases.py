"""What differs between the releases of vLLM that the connector runs under, 0.26 and 0.29 to 0.33.

Each function looks for the means of the newer releases and falls back on those of the older ones; no version number is
compared, and no other module asks which release it runs under. The connector's hooks need no such choice: a release
calls those that it knows. tests/python/test_vllm_interface.py has the table of everything that is called or read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch


def attention_backends(vllm_config: Any, layers: Iterable[str]) -> dict[str, Any]:
    """Each layer's attention backend; layers without one are left out."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    found = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, list(layers))
    return {name: layer.get_attn_backend() for name, layer in found.items()}


def block_dimension(backend: Any, kv_spec: Any, cache_dtype: str, tensor: torch.Tensor, block_count: int) -> int | None:
    """The dimension of a layer's KV tensor that counts blocks; None: this release does not say.

    Up to 0.28 the layer's backend says. From 0.29 on every layer's tensor is a view ``[blocks, heads, tokens, …]``,
    whatever the order in memory, and the backends no longer have that function. Kernels with smaller blocks make
    ``blocks`` a multiple of the engine's.
    """
    ask = getattr(backend, "get_kv_cache_block_dim", None)
    if ask is None:
        return 0 if tensor.dim() > 1 and tensor.shape[0] and tensor.shape[0] % block_count == 0 else None
    try:
        return int(
            ask(kv_spec.block_size, getattr(kv_spec, "num_kv_heads", 1), kv_spec.head_size, cache_dtype_str=cache_dtype)
        )
    except (TypeError, ValueError, NotImplementedError):
        return None


def drafts_ahead(vllm_config: Any) -> bool:
    """Whether a draft model's KV depends on the token after each position, so that vLLM drops the last block of a hit.

    From 0.33 on, vLLM's hashes can hold these tokens instead (``num_hash_lookahead_tokens``); the connector's keys do
    not. Where a user has switched the drop off, it is off here as well.
    """
    speculative = getattr(vllm_config, "speculative_config", None)
    if speculative is None:
        return False
    drops = getattr(speculative, "use_eagle_block_drop", None) or speculative.use_eagle
    return bool(drops())


def hit_source() -> Any:
    """What vLLM's metrics count imported tokens as, from 0.32 on: a peer's memory. None: it has no such counter."""
    try:
        from vllm.v1.metrics.cache_hit_source import CacheHitSource
    except ImportError:
        return None
    return CacheHitSource.P2P


def fails_by_request() -> bool:
    """Whether the scheduler can be told of a request whose load failed, which it computes anew: from 0.30 on.

    It can be told of blocks in any release, but takes these of a single KV-cache group only.
    """
    results = _transfer_results()
    return results is not None and "failed_recving" in {field.name for field in fields(results)}


def transfer_results(finished: set[str], failed: set[str]) -> Any:
    """What ``get_transfer_results`` returns; only a release that has such results calls it."""
    results = _transfer_results()
    assert results is not None
    return results(finished_recving=finished, failed_recving=failed)


def _transfer_results() -> Any:
    try:
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
    except ImportError:
        return None
    return KVConnectorTransferResults


def worker_ranks() -> tuple[int, int]:
    """Pipeline and tensor rank of the calling worker."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return get_pp_group().rank_in_group, get_tp_group().rank_in_group


__all__ = [
    "attention_backends",
    "block_dimension",
    "drafts_ahead",
    "fails_by_request",
    "hit_source",
    "transfer_results",
    "worker_ranks",
]
