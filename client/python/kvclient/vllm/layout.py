"""Where an engine's KV blocks lie, by the tensors that it registers, in any layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from kvclient.errors import UnsupportedError
from kvclient.torch import geometry_of, physical_order


@dataclass(frozen=True)
class KvLayout:
    """``tensors``: what makes up a block, in layer order, no byte twice; dimension 0 counts blocks."""

    tensors: tuple[torch.Tensor, ...]
    #: Order of a block's bytes, for ModelSpec.layout: two engines whose texts are equal can share.
    text: str

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.tensors[0].device

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all layers."""
        return sum(tensor[0].numel() * tensor.element_size() for tensor in self.tensors)


def read_layout(
    kv_caches: Mapping[str, torch.Tensor],
    block_count: int,
    block_dim: Callable[[str], int | None] = lambda _: None,
    groups: str = "",
) -> KvLayout:
    """View every layer's KV tensor as ``[blocks, …]``, the other dimensions in the order of memory.

    ``kv_caches``: layer name -> tensor, as vLLM's ``register_kv_caches`` gets it. ``block_count``: the engine's
    blocks; a tensor may count smaller ones, several of which make up one. ``block_dim(layer)``: the dimension that
    counts blocks, None if that is not known: then the only one that fits. ``groups``: groups.describe(); where there
    are several, their tensors overlay each other, and a block is everything that any of them has in it.

    Layouts of vLLM's releases: ``[2, blocks, tokens, heads, size]``, ``[blocks, 2, …]``, heads and tokens exchanged by
    strides, K and V in one last dimension, MLA's ``[blocks, tokens, size]``, layers as strided views of one buffer.

    UnsupportedError: states other than KV blocks, no such dimension or several, tensors on different devices.
    """
    tensors: list[torch.Tensor] = []
    texts: list[str] = []
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name in kv_caches:
        tensor = kv_caches[name]
        if not isinstance(tensor, torch.Tensor):
            raise UnsupportedError(f"layer {name} keeps its state in a {type(tensor).__name__}, not in KV blocks")
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if identity in seen:  # layers that share their KV
            continue
        seen.add(identity)
        dim = block_dim(name)
        dim = _only_block_dim(name, tensor, block_count) if dim is None else dim
        if tensor.shape[dim] % block_count or not tensor.shape[dim]:
            raise UnsupportedError(f"layer {name} has {tensor.shape[dim]} blocks, the engine {block_count}")
        small = tensor.shape[dim] // block_count
        blocks = tensor.unflatten(dim, (block_count, small)) if small > 1 else tensor
        order = physical_order(blocks, dim)
        texts.append(_describe(blocks, order))
        tensors.append(blocks.permute(dim, *order))
    if not tensors:
        raise UnsupportedError("the engine has registered no KV tensors")
    if len({tensor.device for tensor in tensors}) > 1:
        raise UnsupportedError("KV tensors on different devices")
    return KvLayout(tuple(_overlaid(tensors) if groups else tensors), _summary(texts, groups))


def _overlaid(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The bytes of all tensors, each once: those that overlap become one tensor of bytes, at the first one's place."""
    merged: list[torch.Tensor] = []
    for tensor in tensors:
        overlapping = [each for each in merged if _overlap(_chunks(tensor), _chunks(each))]
        if not overlapping:
            merged.append(tensor)
            continue
        place = next(index for index, each in enumerate(merged) if each is overlapping[0])
        merged = [each for each in merged if not any(each is other for other in overlapping)]
        merged.insert(place, _joined([*overlapping, tensor]))
    return merged


def _chunks(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """The bytes of block 0, as addresses [begin, end), ascending."""
    base = tensor.untyped_storage().data_ptr()
    parts = geometry_of([tensor], 0).geometry.parts
    begins = [
        (base + part.offset + i * part.repeat_stride, part.chunk_bytes) for part in parts for i in range(part.count)
    ]
    return sorted((begin, begin + count) for begin, count in begins)


def _overlap(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> bool:
    both = sorted([*one, *other])
    return any(before[1] > after[0] for before, after in pairwise(both))


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    first, chunks = tensors[0], [_chunks(tensor) for tensor in tensors]
    strides = {tensor.stride(0) * tensor.element_size() for tensor in tensors}
    if len(strides) == 1 and all(each == chunks[0] for each in chunks):
        return first
    begin, end = min(each[0][0] for each in chunks), max(each[-1][1] for each in chunks)
    if len(strides) > 1 or any(len(each) > 1 for each in chunks) or end - begin > min(strides):
        raise UnsupportedError("KV-cache groups lie over each other in pieces: set VLLM_KV_CACHE_LAYOUT=LBNHC")
    storage = first.untyped_storage()
    of_bytes = torch.empty(0, dtype=torch.uint8, device=first.device)
    return of_bytes.set_(storage, begin - storage.data_ptr(), (first.shape[0], end - begin), (strides.pop(), 1))


def _only_block_dim(name: str, tensor: torch.Tensor, block_count: int) -> int:
    fits = [dim for dim in range(tensor.dim()) if tensor.shape[dim] % block_count == 0 and tensor.shape[dim]]
    if len(fits) != 1:
        raise UnsupportedError(
            f"layer {name}, {list(tensor.shape)}: {len(fits) or 'no'} dimensions can count {block_count} blocks"
        )
    return fits[0]


def _describe(blocks: torch.Tensor, order: Sequence[int]) -> str:
    """``bfloat16x2x16x8x128``: type and sizes in the order of memory, ``@0213`` if that is not the dimensions' own.

    Sizes alone would not tell tokens from heads where there are as many of both. Dimensions of one have no order.
    """
    real = [dim for dim in order if blocks.shape[dim] > 1]
    text = "x".join([str(blocks.dtype).removeprefix("torch."), *(str(blocks.shape[dim]) for dim in real)])
    ranks = [sorted(real).index(dim) for dim in real]
    return text if ranks == sorted(ranks) else text + "@" + "".join(map(str, ranks))


def _summary(texts: Sequence[str], groups: str) -> str:
    """``12*bfloat16x2x16x8x128``, and of several groups ``|full:0,3;sliding512:1,2``; if long, a digest of it."""
    runs: list[tuple[str, int]] = []
    for text in texts:
        if runs and runs[-1][0] == text:
            runs[-1] = (text, runs[-1][1] + 1)
        else:
            runs.append((text, 1))
    joined = "+".join(f"{count}*{text}" for text, count in runs) + (f"|{groups}" if groups else "")
    return joined if len(joined) <= 200 else "sha256:" + hashlib.sha256(joined.encode()).hexdigest()


__all__ = ["KvLayout", "read_layout"]
