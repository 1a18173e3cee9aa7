"""What a model's weights are, by their content: names, sizes and times of files say nothing of the bytes in memory.

A digest reads every byte once, where it lies. Host memory: SHA-256 of pieces, on several threads. A GPU: 128 bits of
sums of mixed words for each piece, computed there, then SHA-256 of these. So the digest of the same weights differs
between the two, and so do the bytes of the KV blocks that they compute. It guards against mistakes, not against an
adversary: whoever may publish in a domain can publish anything.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from kvclient.errors import UnsupportedError

_PIECE_BYTES = 16 << 20  # what a GPU's temporaries are multiples of, and what a thread takes at a time
_PROBES = 64  # elements of a tensor that WeightsWatch looks at

NamedTensors = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


def parameters_digest(named_tensors: NamedTensors) -> str:
    """Digest of tensors: the name, dtype, shape and every byte of each; 64 hex digits.

    ``named_tensors``: a mapping or pairs, in any order; see ``tensors_of`` for those of a module. Strides do not
    matter. A swap of two tensors' contents, another name, one bit: each gives another digest. Reads all of it, and
    waits for the GPU. Nobody may write to the tensors meanwhile.

    UnsupportedError: a tensor whose bytes are not all here (on the meta device, sparse, spread over processes), named.
    """
    pairs = named_tensors.items() if isinstance(named_tensors, Mapping) else named_tensors
    plain = [part for name, tensor in sorted(pairs, key=lambda pair: pair[0]) for part in _plain(name, tensor)]
    total = hashlib.sha256()
    with ThreadPoolExecutor(_threads(), thread_name_prefix="kv-digest") as pool:
        known: dict[tuple[Any, ...], list[Any]] = {}  # tied weights are read once
        contents = []
        for _, tensor in plain:
            place = _place(tensor)
            if place not in known:
                known[place] = _submit(pool, tensor)
            contents.append(known[place])
        for (name, tensor), pieces in zip(plain, contents, strict=True):
            header = repr((name, str(tensor.dtype), tuple(tensor.shape), len(pieces))).encode()
            total.update(len(header).to_bytes(8, "little") + header)
            for piece in pieces:
                total.update(_bytes_of(piece))
    return total.hexdigest()


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors that a module computes with: parameters, buffers (unsaved ones, too), what else it would save."""
    found: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            found[name] = value
    found.update(module.named_parameters(remove_duplicate=False))
    found.update(module.named_buffers(remove_duplicate=False))
    return found


class WeightsWatch:
    """Whether a module's tensors are still those that it was made for. Not thread-safe.

    ``changed`` costs about a millisecond and sees: other tensors in their place (``load_state_dict(assign=True)``,
    adapters, a move to another device), what autograd's version counters see (optimizers, ``copy_``), and whatever
    else changes one of some elements of each tensor that it looks at. A write by ``.data`` or from outside of torch
    that changes few elements can escape it: say ``refresh`` after one, or compare ``parameters_digest``.
    """

    def __init__(self, module: torch.nn.Module, *, skip: Collection[str] = ()) -> None:
        """Take what the tensors are now for unchanged. ``skip``: names of those that may change."""
        self._module = module
        self._skip = frozenset(skip)
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether something is different since the last ``refresh``; stays so until then."""
        return self._look() != self._seen

    def refresh(self) -> None:
        """Take what the tensors are now for unchanged."""
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


def _plain(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor as those that hold its bytes: itself, or the parts of a tensor subclass (quantized weights)."""
    if hasattr(tensor, "ds_id") or hasattr(tensor, "placements"):  # DeepSpeed's ZeRO 3, DTensor
        raise UnsupportedError(f"{name} is spread over processes")
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        parts, context = flatten()
        name = f"{name}:{type(tensor).__name__}:{context!r}"
        for part in sorted(parts):
            yield from _plain(f"{name}.{part}", getattr(tensor, part))
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
        return tensor.view(-1)[:: (-(-tensor.numel() // _PROBES)) | 1]  # odd, so that the columns differ
    steps = tuple(slice(None, None, max(1, size // 8)) for size in tensor.shape)
    return tensor[steps].reshape(-1)[:_PROBES]


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """In order, each at most _PIECE_BYTES; the cuts follow from shape and dtype alone."""
    if tensor.numel() == 0:
        return
    if tensor.nbytes <= _PIECE_BYTES or tensor.dim() == 0:
        yield tensor
        return
    rows = _PIECE_BYTES // (tensor.nbytes // tensor.shape[0])
    if rows == 0:
        for row in tensor:
            yield from _pieces(row)
        return
    for first in range(0, tensor.shape[0], rows):
        yield tensor[first : first + rows]


def _submit(pool: ThreadPoolExecutor, tensor: torch.Tensor) -> list[Any]:
    if tensor.device.type == "cuda":
        return [_mixed_sums(piece) for piece in _pieces(tensor)]
    return [pool.submit(_sha256, piece) for piece in _pieces(tensor)]


def _sha256(piece: torch.Tensor) -> bytes:
    return hashlib.sha256(_as_bytes(piece.cpu()).numpy().data).digest()


def _bytes_of(piece: Any) -> bytes:
    if isinstance(piece, torch.Tensor):
        return bytes(piece.cpu().numpy().tobytes())
    return bytes(piece.result())


def _as_bytes(piece: torch.Tensor) -> torch.Tensor:
    return piece.contiguous().reshape(-1).view(torch.uint8)


def _mixed_sums(piece: torch.Tensor) -> torch.Tensor:
    """128 bits of a piece's bytes, int64 [2], where they lie; queued, not waited for.

    The bytes as 64-bit words, each mixed with its position by the finalizer of SplitMix64 and summed, under two
    seeds. A change of one word changes both sums for certain. Source: Steele, Lea, Flood 2014.
    """
    raw = _as_bytes(piece)
    if raw.numel() % 8 or raw.storage_offset() % 8:
        raw = torch.nn.functional.pad(raw, (0, -raw.numel() % 8)).clone()
    words = raw.view(torch.int64)
    steps = torch.arange(1, words.numel() + 1, dtype=torch.int64, device=words.device)
    sums = []
    for seed in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):
        mixed = steps * _signed(seed)
        mixed += words
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed ^= (mixed >> shift) & ((1 << (64 - shift)) - 1)  # >> copies the sign
            mixed *= _signed(factor)
        mixed ^= (mixed >> 31) & ((1 << 33) - 1)
        sums.append(mixed.sum())
    return torch.stack(sums)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))


__all__ = ["NamedTensors", "WeightsWatch", "parameters_digest", "tensors_of"]
