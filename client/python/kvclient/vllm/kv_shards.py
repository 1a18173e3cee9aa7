"""The KV shards of a pipeline's stage: what the keys of its ranks name, since ranks may hold the same KV.

Tensor parallelism divides KV heads over ranks. With fewer heads than ranks each head is computed by several ranks
alike, and latents (MLA) by all of them. Such ranks have one key, so that the host cache keeps one copy, and of the
ranks of a shard one publishes each block (``published_by``). vLLM's sums over ranks give each rank the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from kvclient._native import BlockKey, BlockKeys, ModelSpec

# Blocks in a row that one of the ranks of a shard publishes: its peers then copy from all of them
# at once, and each copy is still long.
_IN_A_ROW = 32


class Rank(NamedTuple):
    """A worker's place in its engine."""

    pp_rank: int
    tp_rank: int


@dataclass(frozen=True)
class Replica:
    """A rank among those that hold the same KV."""

    index: int = 0
    count: int = 1


#: The only rank that holds its shard.
ONLY = Replica()


class Part(NamedTuple):
    """Blocks in a row of a longer run: which they are, and the key before them."""

    first: int
    last: int
    parent: BlockKey


def count_shards(models: Iterable[torch.nn.Module], specs: Mapping[str, Any], tp_size: int) -> int:
    """Shards of the KV of these layers among ``tp_size`` ranks; as many as ranks unless ranks surely hold the same.

    ``models``: those that a worker has loaded. ``specs``: layer -> vLLM's KVCacheSpec.
    """
    if tp_size == 1:
        return 1
    heads = _heads_of_layers(models)
    counts = {_shards_of(spec, heads.get(layer, 0), tp_size) for layer, spec in specs.items()}
    return counts.pop() if len(counts) == 1 else tp_size


def _shards_of(spec: Any, heads: int, tp_size: int) -> int:
    """``heads``: of all ranks, as the projection divides them; 0: not known."""
    kinds = [kind.__name__ for kind in type(spec).__mro__]
    if any(kind in ("MLAAttentionSpec", "SlidingWindowMLASpec") for kind in kinds):
        return 1
    if 0 < heads < tp_size and tp_size % heads == 0 and getattr(spec, "num_kv_heads", 0) == 1:
        return heads
    return tp_size


def _heads_of_layers(models: Iterable[torch.nn.Module]) -> dict[str, int]:
    """Attention layer -> KV heads of all ranks, where vLLM's QKVParallelLinear gives each rank its heads."""
    heads: dict[str, int] = {}
    for model in models:
        for module in model.modules():
            children: list[Any] = list(module.children())
            projections = [child for child in children if hasattr(child, "num_kv_head_replicas")]
            names = [str(child.layer_name) for child in children if hasattr(child, "layer_name")]
            if len(projections) == 1:
                heads.update((name, int(projections[0].total_num_kv_heads)) for name in names)
    return heads


def with_shards(spec: ModelSpec, counts: Sequence[int], *, across_sizes: bool) -> None:
    """Have an engine's ``spec`` name shards instead of ranks. ``counts``: each worker's ``count_shards``.

    ``across_sizes``: engines of other numbers of ranks share if they have as many shards, though last bits may differ.
    """
    ranks, count = spec.tp_size, counts[0]
    if len(set(counts)) > 1:
        count = ranks
    spec.tp_size = count
    if count != ranks and not across_sizes:
        spec.weights_digest = f"{spec.weights_digest};tp={ranks}"


def shard_of(tp_rank: int, tp_size: int, shards: int) -> tuple[int, Replica]:
    """The shard that a rank holds, and its place among the ranks that hold the same: neighbours, as in vLLM."""
    alike = tp_size // shards
    return tp_rank // alike, Replica(tp_rank % alike, alike)


def published_by(replica: Replica, keys: BlockKeys, parent: BlockKey, depth: int) -> Iterator[Part]:
    """The parts of a run that this rank publishes. ``depth``: place of the run's first block in its prefix."""
    if replica.count == 1:
        yield Part(0, len(keys), parent)
        return
    first = 0
    while first < len(keys):
        turn = (depth + first) // _IN_A_ROW
        last = min(len(keys), (turn + 1) * _IN_A_ROW - depth)
        if turn % replica.count == replica.index:
            yield Part(first, last, keys[first - 1] if first else parent)
        first = last


__all__ = ["ONLY", "Part", "Rank", "Replica", "count_shards", "published_by", "shard_of", "with_shards"]
