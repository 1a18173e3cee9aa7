"""What an engine's weights are: a digest over all bytes of the parameters and buffers that a worker has loaded.

The digest is ``kvclient.weights.parameters_digest``; here is what it is taken of: all models of a worker, with tensors
that engines keep outside of parameters. Some engines keep weights where they can't be read (oneDNN's packed layers on a
CPU): these are named, and their identity has to come from somewhere else.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvclient.errors import UnsupportedError
from kvclient.weights import parameters_digest, plain_tensors


@dataclass(frozen=True)
class Measured:
    """One worker's weights, at one moment. Plain data."""

    pp_rank: int
    tp_rank: int
    #: Of every tensor that could be read, and of code that came with the model; 64 hex digits.
    digest: str
    #: Modules whose weights can't be read, each with the id of the object that holds them: another
    #: id, other weights.
    unreadable: tuple[tuple[str, int], ...] = ()
    #: Source files of the model that read ``max_model_len``: it may decide the content of KV
    #: blocks.
    reads_length: tuple[str, ...] = ()
    #: Module of the model runner.
    runner: str = ""


def tensors_of(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], tuple[tuple[str, int], ...]]:
    """All parameters, buffers and tensors in closures of a model's modules, and the modules that can't be read.

    Engines replace weights by packed copies that a function of the module holds. A tensor in such a function is read
    like any other; a module that holds another kind of object, and no other weights, is unreadable.
    """
    tensors: dict[str, torch.Tensor] = {}
    unreadable: list[tuple[str, int]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        emptied = any(isinstance(each, torch.nn.Parameter) and not each.numel() for each in own.values())
        packed, opaque = _in_closures(module)
        for part, tensor in {**own, **packed}.items():
            for inner, plain in plain_tensors(part, tensor):
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


def models_of(worker: Any) -> dict[str, torch.nn.Module]:
    """The models that a vLLM worker runs: the served model and a draft. UnsupportedError: the worker shows none."""
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
    """Digest all weights that a vLLM worker has loaded. ``kv_caches``: tensors to leave out; they may be buffers."""
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
    text = parameters_digest(tensors) + "".join(f";{name}={code[name]}" for name in sorted(code))
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

    It selects LongRoPE's factors, Llama 4's attention temperature and more, differently in each release, so the source
    decides. A mention without effect only keeps engines of different lengths from sharing.
    """
    modules = {type(each).__module__ for each in model.modules()}
    layers = {name for name in modules if name.startswith(("torch.", "vllm.")) and not _is_model(name)}
    return {name for name in modules - layers if b"max_model_len" in _source(name, b"max_model_len")}


def _is_model(module: str) -> bool:
    return any(part in f"{module}." for part in (".models.", ".rotary_embedding"))


def _foreign_code(model: torch.nn.Module) -> dict[str, str]:
    """Digests of the source of modules that belong to no release: code of a model's folder, plug-ins."""
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
    """One digest for the weights of all ranks, given in any order; 32 hex digits."""
    ordered = sorted(ranks, key=lambda rank: (rank.pp_rank, rank.tp_rank))
    text = ";".join(f"{rank.pp_rank}.{rank.tp_rank}:{rank.digest}" for rank in ordered)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


__all__ = ["Measured", "gathered", "measure", "models_of", "tensors_of"]
