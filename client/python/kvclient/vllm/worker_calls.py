"""What the scheduler's side has every worker do before blocks are shared, through the engine's executor."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvclient._native import ModelSpec
from kvclient.errors import KvError, UnsupportedError
from kvclient.vllm.weights import Measured

if TYPE_CHECKING:
    from kvclient.vllm.connector import KvMarketConnector


@dataclass
class Described:
    """What a worker is going to register: the canonical model spec without the weights, and the worker's shard."""

    spec: str
    pp_rank: int
    tp_rank: int
    in_place: bool
    #: Shards of the KV among the ranks of the worker's stage.
    kv_shards: int = 1

    def rank(self) -> tuple[int, int]:
        """The order of shards."""
        return self.pp_rank, self.tp_rank


# The workers' connectors in this process by engine id, through which calls to workers find theirs.
connectors: weakref.WeakValueDictionary[str, KvMarketConnector] = weakref.WeakValueDictionary()


def _of(worker: Any, engine_id: str) -> KvMarketConnector:
    connector = connectors.get(engine_id)
    if connector is None:
        raise UnsupportedError(f"a worker of {engine_id} has no connector")
    return connector


def measure_worker(worker: Any, engine_id: str) -> Measured | str:
    """Runs in each worker: measures its weights, or returns why they can't be."""
    try:
        return _of(worker, engine_id).measure(worker)
    except KvError as error:
        return str(error)


def finish_measuring_worker(worker: Any, engine_id: str) -> None:
    """Runs in each worker: waits until it measures nothing."""
    connector = connectors.get(engine_id)
    if connector is not None:
        connector.finish_measuring()


def describe_worker(worker: Any, engine_id: str) -> Described | str:
    """Runs in each worker: what it is going to register, or why it does not."""
    try:
        return _of(worker, engine_id).describe(worker)
    except KvError as error:
        return str(error)


def register_worker(worker: Any, engine_id: str, canonical: str) -> tuple[int, int, bool, str]:
    """Runs in each worker: its ranks, whether its memory is registered under the model, and if not, why."""
    connector = _of(worker, engine_id)
    try:
        connector.watch_steps(worker)
    except KvError as error:
        return 0, 0, False, str(error)
    return connector.register_under(ModelSpec.from_canonical(canonical))


def registration_of_worker(worker: Any, engine_id: str) -> tuple[int, int, str] | str:
    """Runs in each worker: its ranks and the fingerprint that its memory is registered under, or why it can't be."""
    try:
        return _of(worker, engine_id).registration()
    except KvError as error:
        return str(error)


__all__ = [
    "Described",
    "connectors",
    "describe_worker",
    "finish_measuring_worker",
    "measure_worker",
    "register_worker",
    "registration_of_worker",
]
