"""Torch tensors and regions: where tensors' blocks lie, tensors as regions, and tensors over a region's memory.

Nothing here assumes a layout: addresses, strides and storage offsets are taken from the tensors. Every function may
be called from any thread.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvclient import _native
from kvclient._native import Client, Geometry, GeometryPart, Model, Region, Shard
from kvclient.errors import BadGeometryError, InvalidArgumentError, NotFoundError, UnsupportedError


@dataclass(frozen=True)
class Segment:
    """The memory of tensors: one torch storage. Not owned: the owner of the tensors keeps it alive."""

    address: int
    size_bytes: int
    device: torch.device


@dataclass(frozen=True)
class TensorGeometry:
    """Where the blocks of some tensors lie: ``geometry`` refers to ``segments`` by index."""

    geometry: Geometry
    segments: tuple[Segment, ...]

    @property
    def segment_bytes(self) -> list[int]:
        """Size of each segment, as ``Client.allocate_region`` takes it."""
        return [segment.size_bytes for segment in self.segments]


def physical_order(tensor: torch.Tensor, block_dim: int) -> tuple[int, ...]:
    """Dimensions of ``tensor`` without the block's, outermost first as they lie in memory (by stride)."""
    block_dim = _dimension(tensor, block_dim)
    rest = [dim for dim in range(tensor.dim()) if dim != block_dim]
    return tuple(sorted(rest, key=lambda dim: (-tensor.stride()[dim], dim)))


def geometry_of(
    tensors: Sequence[torch.Tensor],
    block_dim: int | Sequence[int],
    *,
    order: Sequence[int] | None = None,
) -> TensorGeometry:
    """Compute the geometry of paged KV tensors from their strides and storage offsets.

    ``tensors``: in the order in which their parts make up a block (layer by layer), any number of
    dimensions, any strides, several may share a storage. ``block_dim``: the dimension that counts blocks,
    one for all or one for each; the same size in all.

    ``order``: the other dimensions, outermost first, in the order in which the elements of a block follow
    each other. Default: as the dimensions are numbered. It is part of what two regions must agree on, so
    the model spec's ``layout`` has to say it; ``physical_order`` gives the one with the fewest chunks.

    Examples, ``order`` left out: ``[2, blocks, tokens, heads, size]`` with ``block_dim=1`` gives two chunks
    of a tensor, ``[blocks, 2, tokens, heads, size]`` with ``block_dim=0`` one; the bytes of a block are the same.

    BadGeometryError: blocks overlap, an expanded tensor, too many chunks. InvalidArgumentError: no tensors,
    block counts differ, ``order`` is no permutation of the other dimensions.
    """
    if not tensors:
        raise InvalidArgumentError("geometry_of: no tensors")
    dims = [block_dim] * len(tensors) if isinstance(block_dim, int) else list(block_dim)
    if len(dims) != len(tensors):
        raise InvalidArgumentError(f"geometry_of: {len(tensors)} tensors, {len(dims)} block dimensions")
    dims = [_dimension(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]
    block_counts = {tensor.shape[dim] for tensor, dim in zip(tensors, dims, strict=True)}
    if len(block_counts) != 1:
        raise InvalidArgumentError(f"geometry_of: tensors with different block counts {sorted(block_counts)}")

    segments: list[Segment] = []
    parts: list[GeometryPart] = []
    for tensor, dim in zip(tensors, dims, strict=True):
        storage = tensor.untyped_storage()
        segment = Segment(storage.data_ptr(), storage.nbytes(), tensor.device)
        if segment not in segments:
            segments.append(segment)
        parts.extend(_parts(tensor, dim, order, segments.index(segment), tensor.data_ptr() - segment.address))
    result = TensorGeometry(Geometry(block_counts.pop(), parts), tuple(segments))
    result.geometry.validate(result.segment_bytes)
    return result


def device_uuid(device: torch.device | str | int | None = None) -> str:
    """``"GPU-<uuid>"`` of a CUDA device of this process, the same in every process; None: the current one.

    InvalidArgumentError: not a CUDA device. NotFoundError, UnsupportedError: there is no such GPU, or no CUDA.
    """
    return _native.device_at(_cuda_index(device))


def torch_device(uuid: str) -> torch.device:
    """The CUDA device of this process that has the UUID, as ``Region.device`` gives it. NotFoundError: none has."""
    for device in _native.list_devices():
        if device.uuid == uuid:
            return torch.device("cuda", device.ordinal)
    raise NotFoundError(f"{uuid} is not visible to this process")


def register_tensors(
    client: Client,
    model: Model,
    tensors: Sequence[torch.Tensor],
    block_dim: int | Sequence[int],
    *,
    name: str,
    order: Sequence[int] | None = None,
    shard: Shard | None = None,
    checksums: bool = False,
    timeout_s: float = 10.0,
) -> Region:
    """Register an engine's own KV tensors as a region, in place, without a copy.

    ``tensors``, ``block_dim``, ``order``: as in ``geometry_of``; all on one GPU. Segments are their storages, which
    the region keeps alive until it has been unregistered. Otherwise as ``Client.register_region``.

    Tensors that were allocated under ``mem_pool`` become a ``CUDA_VMM_FD`` region, those of torch's own allocator a
    ``CUDA_IPC`` region. A new region holds no readable block.

    InvalidArgumentError: tensors on several devices or in host memory. UnsupportedError: memory that can't be
    exported, such as that of expandable segments; allocate the tensors under ``mem_pool`` then. BadGeometryError:
    see ``geometry_of``; also too many storages.
    """
    where = geometry_of(tensors, block_dim, order=order)
    devices = {segment.device for segment in where.segments}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        raise InvalidArgumentError(
            f"register_tensors: tensors on {', '.join(sorted(map(str, devices)))}; they must be on one GPU. For host "
            "memory allocate the region and take tensors over it (kvclient.torch.view)"
        )
    return client.register_region(
        model,
        where.geometry,
        [(segment.address, segment.size_bytes) for segment in where.segments],
        name=name,
        device=device_uuid(devices.pop()),
        shard=shard or Shard(),
        checksums=checksums,
        keep_alive=tuple(tensor.untyped_storage() for tensor in tensors),
        timeout_s=timeout_s,
    )


def mem_pool(device: torch.device | str | int | None = None) -> torch.cuda.MemPool:
    """A pool of exportable GPU memory: tensors allocated in it can be registered as ``CUDA_VMM_FD`` regions.

        pool = kvclient.torch.mem_pool()
        with torch.cuda.use_mem_pool(pool):
            kv = [torch.zeros(shape, dtype=dtype, device="cuda") for _ in range(layers)]
        region = kvclient.torch.register_tensors(client, model, kv, 1, name="rank-0")

    Peers map such memory read-only, it works with expandable segments (which the pool itself does not use), and a
    descriptor keeps it alive. A storage of 10 MiB and more is an allocation of its own, in multiples of 2 MiB; a region
    has at most 127. The memory is mapped for its own GPU only: kernels and copies of another GPU of this process can't
    reach it, and torch can't share it by ``torch.multiprocessing``.

    ``device``: where the pool is going to be used; None: the current device. Keep the pool as long as its tensors;
    the GPU gets the memory back once pool, tensors and regions have been destroyed.

    UnsupportedError, NotFoundError, ResourceExhaustedError: exportable memory can't be had on this GPU, and why.
    """
    index = _cuda_index(device)
    _native.check_exportable(index)
    if not hasattr(torch.cuda, "MemPool"):
        raise UnsupportedError(f"mem_pool: PyTorch {torch.__version__} has no torch.cuda.MemPool; 2.5 has")
    with torch.cuda.device(index):
        return torch.cuda.MemPool(_allocator().allocator())


@functools.cache
def _allocator() -> Any:
    # Never destroyed: torch's pools have a raw pointer into the allocator.
    return torch.cuda.memory.CUDAPluggableAllocator(_native.__file__, "kvm_torch_allocate", "kvm_torch_free")


def segment_tensor(region: Region, index: int = 0) -> torch.Tensor:
    """A segment of a region as a tensor, uint8 ``[segment bytes]``, no copy; keeps the memory alive.

    On the region's device. On a GPU the call does not synchronize: order your work after the kernels and copies that
    fill the memory.
    """
    if region.device is None:
        return torch.from_numpy(region.segment(index))
    segment = region.device_segment(index)
    tensor = torch.as_tensor(segment, device=torch_device(region.device))
    if tensor.data_ptr() != segment.address:
        raise UnsupportedError(f"PyTorch {torch.__version__} copies memory that it should use in place")
    return tensor


def view(
    region: Region,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    stride: Sequence[int] | None = None,
    segment: int = 0,
    offset_bytes: int = 0,
) -> torch.Tensor:
    """A tensor over a region's memory, on the region's device: no copy, keeps the memory alive.

    ``stride``: in elements, row-major if not given. ``offset_bytes``: from the segment's start, a multiple
    of the element's size. InvalidArgumentError: it would reach beyond the segment.
    """
    strides = list(stride) if stride is not None else row_major(shape)
    if offset_bytes % dtype.itemsize:
        raise InvalidArgumentError(f"view: offset {offset_bytes} is no multiple of {dtype}'s {dtype.itemsize} bytes")
    extent = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + 1
    end = offset_bytes + extent * dtype.itemsize
    if min(shape, default=1) < 1 or end > region.segment_bytes[segment]:
        raise InvalidArgumentError(
            f"view: {list(shape)} of {dtype} ends at {end}, the segment at {region.segment_bytes[segment]}"
        )
    flat = segment_tensor(region, segment)[offset_bytes:end].view(dtype)
    return flat.as_strided(list(shape), strides)


def _cuda_index(device: torch.device | str | int | None) -> int:
    if isinstance(device, int):
        return device
    wanted = torch.device("cuda" if device is None else device)
    if wanted.type != "cuda":
        raise InvalidArgumentError(f"{wanted} is not a CUDA device")
    if wanted.index is not None:
        return wanted.index
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _dimension(tensor: torch.Tensor, dim: int) -> int:
    dims = tensor.ndim
    if not -dims <= dim < dims:
        raise InvalidArgumentError(f"geometry_of: a tensor of {dims} dimensions has no dimension {dim}")
    return dim % dims


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides, in elements, of a tensor of ``shape`` whose elements lie without gaps, the last dimension innermost."""
    return [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]


def _parts(
    tensor: torch.Tensor, block_dim: int, order: Sequence[int] | None, segment: int, offset: int
) -> list[GeometryPart]:
    rest = [dim for dim in range(tensor.dim()) if dim != block_dim]
    if order is not None:
        if sorted(dim % tensor.dim() for dim in order) != rest:
            raise InvalidArgumentError(
                f"geometry_of: order {tuple(order)} does not name the dimensions {rest} once each"
            )
        rest = [dim % tensor.dim() for dim in order]
    item = tensor.element_size()
    axes = [(tensor.shape[dim], tensor.stride(dim) * item) for dim in rest if tensor.shape[dim] != 1]
    if any(size > 1 and step == 0 for size, step in axes):
        raise BadGeometryError("geometry_of: an expanded tensor names the same bytes more than once")

    chunk = item
    while axes and axes[-1][1] == chunk:
        chunk *= axes.pop()[0]
    merged: list[tuple[int, int]] = []
    for size, step in axes:
        if merged and merged[-1][1] == step * size:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    count, repeat_stride = merged.pop() if merged else (1, 0)
    # With one block its stride is never used, and torch may report any.
    block_stride = tensor.stride(block_dim) * item if tensor.shape[block_dim] > 1 else chunk
    outer = itertools.product(*(range(size) for size, _ in merged))
    steps = [step for _, step in merged]
    return [
        GeometryPart(
            segment=segment,
            offset=offset + sum(index * step for index, step in zip(indices, steps, strict=True)),
            chunk_bytes=chunk,
            block_stride=block_stride,
            count=count,
            repeat_stride=repeat_stride,
        )
        for indices in outer
    ]


__all__ = [
    "Segment",
    "TensorGeometry",
    "device_uuid",
    "geometry_of",
    "mem_pool",
    "physical_order",
    "register_tensors",
    "row_major",
    "segment_tensor",
    "torch_device",
    "view",
]
