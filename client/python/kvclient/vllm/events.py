"""vLLM's KV events of what the marketplace holds (held.py), for the stream that the engine's routers read."""

from __future__ import annotations

from typing import Any

from kvclient.vllm.held import Removed, Stored


def event_of(change: Stored | Removed, kv_spec: Any) -> Any:
    """A BlockStored or BlockRemoved, with the hashes that vLLM's own events of these blocks have.

    ``kv_spec``: vLLM's KVCacheSpec of the only KV-cache group. The medium is CPU: an import costs about what a load
    from the host's memory does, wherever the block lies.
    """
    from vllm.distributed.kv_events import BlockRemoved, BlockStored
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
    from vllm.v1.kv_cache_interface import get_kv_cache_spec_kind, get_kv_cache_spec_sliding_window

    if isinstance(change, Removed):
        hashes = [maybe_convert_block_hash(each) for each in change.hashes]
        return BlockRemoved(block_hashes=hashes, medium="CPU", group_idx=0)
    prefix, first, last = change.prefix, change.first, change.last
    size = kv_spec.block_size
    return BlockStored(
        block_hashes=[maybe_convert_block_hash(each) for each in prefix.hashes[first:last]],
        parent_block_hash=maybe_convert_block_hash(prefix.hashes[first - 1]) if first else None,
        token_ids=list(prefix.tokens[first * size : last * size]),
        block_size=size,
        lora_id=prefix.lora_id,
        medium="CPU",
        lora_name=prefix.lora_name,
        extra_keys=[(prefix.lora_name,) if prefix.lora_name else None] * (last - first),
        group_idx=0,
        kv_cache_spec_kind=get_kv_cache_spec_kind(kv_spec).value,
        kv_cache_spec_sliding_window=get_kv_cache_spec_sliding_window(kv_spec),
    )


__all__ = ["event_of"]
