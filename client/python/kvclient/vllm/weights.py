"""What an engine's weights are: checksums over all bytes of the parameters and buffers that a worker has loaded.

Names, shapes and bytes of every tensor go into the digest, so that a swapped, renamed or changed one (by a single bit)
gives another. The sums are libkvclient's: position-mixed, 64 bits for each MiB, at the speed of the memory that holds
the weights; SHA-256 over all sums. Some engines keep weights where nobody can read them (oneDNN's packed layers on a
CPU): these are named, and their identity has to come from somewhere else.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvclient._native import checksum_memory
from kvclient.errors import UnsupportedError
from kvclient.torch import device_uuid

_PIECE = 1 << 20
# What one thread sums, and what is copied at once where a device's own memory can't be summed.
_SHARE = 64 << 20


@dataclass(frozen=True)
class Measured:
    """One worker's weights, at one moment. Plain data."""

    pp_rank: int
    tp_rank: int
    #: Of every tensor that could be read, and of code that came with the model; 64 hex digits.
    digest: str
    #: Modules whose weights can't be read, and what stands for each: another object, other weights.
    unreadable: tuple[tuple[str, int], ...] = ()
    #: Source files of the model that read ``max_model_len``: it may decide the content of KV blocks.
    reads_length: tuple[str, ...] = ()
    #: Module of the model runner.
    runner: str = ""


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of names, types, shapes and bytes, in the order of names; 64 hex digits.

    Waits for everything that has been queued on the tensors' GPUs. UnsupportedError: a tensor has no memory to read.
    """
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(max(1, min(8, len(os.sched_getaffinity(0))))) as threads:
        for name in sorted(tensors):
            tensor = tensors[name].detach()
            dense = _in_memory_order(tensor)
            head = f"{len(name)}:{name}:{tensor.dtype}:{tuple(tensor.shape)}:{_order(tensor)}:"
            digest.update(head.encode())
            for sums in threads.map(_sums, _shares(dense)):
                digest.update(sums)
    return digest.hexdigest()


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest in memory."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim)))


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of ``tensor``, in the order of memory, as one row; a copy where they are not dense."""
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        raise UnsupportedError(f"a {tensor.layout} tensor on {tensor.device} has no bytes to read")
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8)
    rows = tensor.permute(_order(tensor)).contiguous().reshape(-1)
    if not rows.data_ptr():
        raise UnsupportedError(f"a {type(tensor).__name__} has no memory of its own")
    return rows.view(torch.uint8)


def _shares(row: torch.Tensor) -> list[torch.Tensor]:
    return [row[start : start + _SHARE] for start in range(0, row.numel(), _SHARE)]


def _sums(row: torch.Tensor) -> bytes:
    if row.is_cuda:
        try:
            return checksum_memory(row.data_ptr(), row.numel(), _PIECE, device_uuid(row.device))
        except UnsupportedError:  # built without CUDA
            row = row.cpu()
    elif row.device.type != "cpu":
        row = row.cpu()
    return checksum_memory(row.data_ptr(), row.numel(), _PIECE)


def tensors_of(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], tuple[tuple[str, int], ...]]:
    """All parameters and buffers of a model, also what its modules keep in closures; and what can't be read.

    Engines replace weights by packed copies, held by a function that the module calls. A tensor in such a function is
    read like any other; another object is unreadable if the module has no weights besides.
    """
    tensors: dict[str, torch.Tensor] = {}
    unreadable: list[tuple[str, int]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        emptied = any(isinstance(each, torch.nn.Parameter) and not each.numel() for each in own.values())
        packed, opaque = _in_closures(module)
        for part, tensor in {**own, **packed}.items():
            for inner, plain in _plain_tensors(part, tensor):
                tensors[f"{name}.{inner}"] = plain
        if emptied and not any(each.numel() for each in packed.values()):
            unreadable += [(name, id(held)) for held in opaque] or [(name, 0)]
            # Kept, so that no other object ever gets the same id.
            module.__dict__.setdefault("_kvclient_seen", []).extend(
                each for each in opaque if not any(each is kept for kept in module.__dict__.get("_kvclient_seen", ()))
            )
    return tensors, tuple(unreadable)


def _in_closures(module: torch.nn.Module) -> tuple[dict[str, torch.Tensor], list[Any]]:
    tensors: dict[str, torch.Tensor] = {}
    others: list[Any] = []
    for name, held in sorted(vars(module).items()):
        code = getattr(held, "__code__", None)
        if code is None:
            continue
        cells = dict(zip(code.co_freevars, (getattr(held, "__closure__", None) or ()), strict=False))
        for variable, cell in cells.items():
            try:
                content = cell.cell_contents
            except ValueError:  # not set
                continue
            if isinstance(content, torch.Tensor):
                tensors[f"{name}.{variable}"] = content
            elif content is not None and not isinstance(content, (bool, int, float, str, torch.nn.Module)):
                others.append(content)
    return tensors, others


def _plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """``tensor``, or the tensors that it is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield name, tensor
        return
    parts, _ = flatten()
    for part in parts:
        yield from _plain_tensors(f"{name}.{part}", getattr(tensor, part))


def models_of(worker: Any) -> dict[str, torch.nn.Module]:
    """The models that a vLLM worker runs: the one that it serves, and a draft. UnsupportedError: it shows none."""
    runner = getattr(worker, "model_runner", None)
    get_model = getattr(runner, "get_model", None)
    model = get_model() if callable(get_model) else None
    if not isinstance(model, torch.nn.Module):
        raise UnsupportedError("this vLLM's worker does not show its model")
    models = {"model": model}
    for holder in ("drafter", "speculator"):
        for name, held in sorted(getattr(getattr(runner, holder, None), "__dict__", {}).items()):
            held = held.unwrap() if callable(getattr(held, "unwrap", None)) else held
            if isinstance(held, torch.nn.Module) and held is not model:
                models[f"{holder}.{name}"] = held
    return models


def measure(worker: Any, pp_rank: int, tp_rank: int, kv_caches: Mapping[str, torch.Tensor]) -> Measured:
    """Checksum everything that a vLLM worker has loaded. ``kv_caches``: of no interest, wherever they turn up."""
    states = {cache.untyped_storage().data_ptr() for cache in kv_caches.values() if isinstance(cache, torch.Tensor)}
    tensors: dict[str, torch.Tensor] = {}
    unreadable: list[tuple[str, int]] = []
    readers: set[str] = set()
    code: dict[str, str] = {}
    offload = getattr(getattr(worker, "vllm_config", None), "offload_config", None)
    if getattr(getattr(offload, "prefetch", None), "offload_group_size", 0):
        raise UnsupportedError("layers that are offloaded in groups move while the engine runs")
    for prefix, model in models_of(worker).items():
        found, hidden = tensors_of(model)
        unreadable += [(f"{prefix}.{name}", what) for name, what in hidden]
        tensors.update({f"{prefix}.{name}": tensor for name, tensor in found.items() if not _inside(tensor, states)})
        readers |= _length_readers(model)
        code.update(_foreign_code(model))
    text = digest_of(tensors) + "".join(f";{name}={code[name]}" for name in sorted(code))
    return Measured(
        pp_rank=pp_rank,
        tp_rank=tp_rank,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        unreadable=tuple(unreadable),
        reads_length=tuple(sorted(readers)),
        runner=type(worker.model_runner).__module__,
    )


def _inside(tensor: torch.Tensor, storages: set[int]) -> bool:
    return tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in storages


def _length_readers(model: torch.nn.Module) -> set[str]:
    """Models and position embeddings whose source mentions ``max_model_len``.

    It chooses LongRoPE's factors, Llama 4's attention temperature and more, differently in each release: the source
    itself says where it may matter. A mention that changes nothing costs sharing between lengths, never correctness.
    """
    modules = {type(each).__module__ for each in model.modules()}
    layers = {name for name in modules if name.startswith(("torch.", "vllm.")) and not _is_model(name)}
    return {name for name in modules - layers if b"max_model_len" in _source(name, b"max_model_len")}


def _is_model(module: str) -> bool:
    return any(part in f"{module}." for part in (".models.", ".rotary_embedding"))


def _foreign_code(model: torch.nn.Module) -> dict[str, str]:
    """Digests of the source of modules that belong to no release: code that came with a model, plug-ins."""
    modules = {type(each).__module__ for each in model.modules()}
    foreign = sorted(name for name in modules if name.split(".")[0] not in ("torch", "vllm", "transformers"))
    return {name: hashlib.sha256(_source(name, b"")).hexdigest() for name in foreign}


def _source(module: str, unknown: bytes) -> bytes:
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return unknown if path is None else Path(path).read_bytes()
    except OSError:
        return unknown


def gathered(ranks: list[Measured]) -> str:
    """One digest for the weights of all ranks, in whatever order they came; 32 hex digits."""
    ordered = sorted(ranks, key=lambda rank: (rank.pp_rank, rank.tp_rank))
    text = ";".join(f"{rank.pp_rank}.{rank.tp_rank}:{rank.digest}" for rank in ordered)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


__all__ = ["Measured", "digest_of", "gathered", "measure", "models_of", "tensors_of"]
