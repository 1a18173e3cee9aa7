"""Identifies a model's weights by their content: names, sizes and times of files do not tell the bytes in memory.

A digest reads every byte once, where it lies, at the speed of that memory: libkvclient's position-mixed 64-bit sums,
one for each MiB, computed by the GPU or by threads, then SHA-256 over all sums. It guards against mistakes, not
against an adversary: any process of a domain can publish any bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from kvclient._native import checksum_memory
from kvclient.errors import UnsupportedError
from kvclient.torch import device_uuid

_SUM_BYTES = 1 << 20  # of one sum
# Bytes that one call sums; also the bytes of one copy from a device whose memory can't be summed in
# place.
_GPU_SHARE_BYTES = 256 * _SUM_BYTES
_CPU_SHARE_BYTES = 8 * _SUM_BYTES
_MOST_IN_A_BATCH = 32  # calls that a thread makes in a row
_PROBES = 64  # elements of a tensor that WeightsWatch looks at

NamedTensors = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


def parameters_digest(named_tensors: NamedTensors) -> str:
    """Digest of tensors: the name, dtype, shape, order of dimensions in memory and every byte of each; 64 hex digits.

    ``named_tensors``: a mapping or pairs, in any order; see ``tensors_of`` for those of a module. Bytes between the
    elements of a strided tensor do not count. A swap of two tensors' contents, another name, one bit: each gives
    another digest; a move to another device does not. Reads all bytes, and waits for everything that has been queued
    on the tensors' GPUs. Other threads must not write to the tensors meanwhile.

    UnsupportedError: a tensor whose bytes are not all here (on the meta device, sparse, spread over processes), named.
    """
    pairs = named_tensors.items() if isinstance(named_tensors, Mapping) else named_tensors
    plain = [part for name, tensor in sorted(pairs, key=lambda pair: pair[0]) for part in plain_tensors(name, tensor)]
    for device in {tensor.device for _, tensor in plain if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    sums = _sums_of_all(plain)
    total = hashlib.sha256()
    for name, tensor in plain:
        header = repr((name, str(tensor.dtype), tuple(tensor.shape), _order(tensor))).encode()
        total.update(len(header).to_bytes(8, "little") + header + b"".join(sums[_place(tensor)]))
    return total.hexdigest()


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors that a module computes with: parameters, all buffers, and the rest of its ``state_dict``."""
    found: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            found[name] = value
    found.update(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


class WeightsWatch:
    """Whether a module's tensors are still those that it was made for. Not thread-safe.

    ``changed`` takes about a millisecond. It detects tensors that have been replaced (``load_state_dict(assign=True)``,
    adapters, a move to another device), writes that autograd's version counters count (optimizers, ``copy_``), and any
    other write that changes one of the elements which it samples from each tensor. It can miss a write through
    ``.data`` or from outside of torch that changes few elements: call ``refresh`` after such a write, or compare
    ``parameters_digest``.
    """

    def __init__(self, module: torch.nn.Module, *, skip: Collection[str] = ()) -> None:
        """Record the tensors' present state as unchanged. ``skip``: names of tensors that may change."""
        self._module = module
        self._skip = frozenset(skip)
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether a change has been seen since the last ``refresh``; stays true until the next one."""
        return self._look() != self._seen

    def refresh(self) -> None:
        """Record the tensors' present state as unchanged."""
        self._seen = self._look()

    def _look(self) -> tuple[Any, ...]:
        named = itertools.chain(self._module.named_parameters(), self._module.named_buffers())
        tensors = [(name, tensor) for name, tensor in named if name not in self._skip]
        probes: dict[tuple[torch.device, int], list[torch.Tensor]] = {}
        signs = []
        for name, tensor in tensors:
            signs.append((name, _place(tensor), _version(tensor)))
            if _readable(tensor) and tensor.numel() and not hasattr(tensor, "__tensor_flatten__"):
                probes.setdefault((tensor.device, tensor.element_size()), []).append(_sample(tensor))
        with torch.no_grad():
            seen = [torch.cat(parts).view(torch.uint8).cpu().numpy().tobytes() for parts in probes.values()]
        return tuple(signs), tuple(seen)


def plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that have a tensor's bytes: itself, or the parts of a tensor subclass (quantized weights).

    UnsupportedError: its bytes are not all here.
    """
    if hasattr(tensor, "ds_id") or hasattr(tensor, "placements"):  # DeepSpeed's ZeRO 3, DTensor
        raise UnsupportedError(f"{name} is spread over processes")
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        parts, context = flatten()
        name = f"{name}:{type(tensor).__name__}:{context!r}"
        for part in sorted(parts):
            yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))
        return
    if not _readable(tensor):
        raise UnsupportedError(f"{name} has no bytes to read: {tensor.layout} on {tensor.device}")
    yield name, tensor.detach().resolve_conj().resolve_neg()


def _readable(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta" and not tensor.is_quantized


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    where = tensor.data_ptr() if _readable(tensor) and not hasattr(tensor, "__tensor_flatten__") else id(tensor)
    return where, tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride() if _readable(tensor) else ()


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Some _PROBES elements, spread over the tensor, as integers of their size."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    tensor = tensor.view(integers.get(tensor.element_size(), tensor.dtype))
    if tensor.is_contiguous():
        # The step is odd, so that the probed columns differ.
        return tensor.view(-1)[:: (-(-tensor.numel() // _PROBES)) | 1]
    steps = tuple(slice(None, None, max(1, size // 8)) for size in tensor.shape)
    return tensor[steps].reshape(-1)[:_PROBES]


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest in memory."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim)))


def _in_memory_order(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of ``tensor`` in the order of memory, as one row; a copy only where they are not dense."""
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8)
    row = tensor.permute(_order(tensor)).contiguous().reshape(-1)
    if not row.data_ptr():
        raise UnsupportedError(f"{name} has no memory of its own: a {type(tensor).__name__}")
    return row.view(torch.uint8)


def _sums_of_all(plain: list[tuple[str, torch.Tensor]]) -> dict[tuple[Any, ...], list[bytes]]:
    """The sums of each tensor by its place, so that tied weights are read once."""
    sums: dict[tuple[Any, ...], list[bytes]] = {}
    waiting: list[_Share] = []
    with ThreadPoolExecutor(_threads(), thread_name_prefix="kv-digest") as pool:
        for name, tensor in plain:
            place = _place(tensor)
            if place in sums:
                continue
            row = _in_memory_order(name, tensor)
            parts = _shares(row)
            sums[place] = [b""] * len(parts)
            shares = [_Share(part, sums[place], index) for index, part in enumerate(parts)]
            if row.data_ptr() == tensor.data_ptr():
                waiting += shares
            else:  # a copy, which should not outlive its reading
                _run(pool, shares)
        _run(pool, waiting)
    return sums


class _Share(NamedTuple):
    row: torch.Tensor
    sums: list[bytes]  # of the whole tensor
    number: int


def _run(pool: ThreadPoolExecutor, shares: list[_Share]) -> None:
    """Sum all shares. A thread gets many small ones at once: to hand over one takes as long as to read a mebibyte."""
    batches: list[list[_Share]] = []
    left = 0
    for share in shares:
        if left <= 0 or len(batches[-1]) == _MOST_IN_A_BATCH:
            batches.append([])
            left = _share_bytes(share.row)
        batches[-1].append(share)
        left -= share.row.numel()
    for _ in pool.map(_sum_batch, batches):
        pass


def _sum_batch(batch: list[_Share]) -> None:
    for share in batch:
        share.sums[share.number] = _sums(share.row)


def _share_bytes(row: torch.Tensor) -> int:
    return _CPU_SHARE_BYTES if row.device.type == "cpu" else _GPU_SHARE_BYTES


def _shares(row: torch.Tensor) -> list[torch.Tensor]:
    size = _share_bytes(row)
    return [row[start : start + size] for start in range(0, row.numel(), size)]


def _sums(row: torch.Tensor) -> bytes:
    if row.is_cuda:
        try:
            return checksum_memory(row.data_ptr(), row.numel(), _SUM_BYTES, device_uuid(row.device))
        except UnsupportedError:  # built without CUDA
            pass
    row = row.cpu()
    return checksum_memory(row.data_ptr(), row.numel(), _SUM_BYTES)


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))


__all__ = ["NamedTensors", "WeightsWatch", "parameters_digest", "plain_tensors", "tensors_of"]
