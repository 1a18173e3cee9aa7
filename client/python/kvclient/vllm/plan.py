"""Messages between the scheduler's side and the workers. Plain data, pickled to other processes."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvclient._native import BlockKey, BlockKeys
from kvclient.vllm.weights import Measured


@dataclass
class PublishRun:
    """Consecutive blocks of one request, of one KV-cache group, whose content has been computed."""

    blocks: list[int]
    depth: int  # blocks before the first one
    keys: list[BlockKeys]  # for each shard
    parents: list[BlockKey]  # for each shard: the key before the first one


@dataclass
class Load:
    """Blocks of one request to import, of one KV-cache group."""

    request_id: str
    blocks: list[int]
    depth: int
    keys: list[BlockKeys]
    parents: list[BlockKey]
    wait: bool  # for the copy, in this step
    #: The engine itself writes to none of the blocks in this step, so the copy may begin before
    #: the step's own work.
    early: bool = False
    #: A block that fails fails the request's whole load, of all groups.
    whole: bool = False


@dataclass
class Join:
    """Blocks of a request to ask kvmd-mesh for."""

    request_id: str
    keys: list[BlockKeys]  # for each shard, from the first block on
    found: int  # how many leading ones are on this node
    source: str = ""  # a host that a router says has them


@dataclass
class StepPlan:
    """Work for one step, carried out in this order before the step writes to KV memory."""

    publish: list[PublishRun] = field(default_factory=list)
    #: Blocks that get new content from this step on.
    begin: list[int] = field(default_factory=list)
    withdraw_all: bool = False
    loads: list[Load] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    #: Fingerprint (hex) of the keys' model; "": the model under which the worker's memory is
    #: registered.
    model: str = ""
    #: Number of the measurement of the weights that workers begin, if they have not; 0: none.
    measure: int = 0


@dataclass
class WorkerReport:
    """A worker's report to the scheduler's side."""

    #: Requests whose load has ended and whose step waited for it.
    waited: set[str] = field(default_factory=set)
    #: (pipeline rank, tensor rank, fingerprint) of memory that has been registered.
    registered: set[tuple[int, int, str]] = field(default_factory=set)
    #: Requests of which this worker's shard has been asked for at kvmd-mesh, and blocks that came.
    joined: list[tuple[str, int]] = field(default_factory=list)
    #: Number of a measurement, what it gave, and the fingerprint that memory is registered under.
    measured: list[tuple[int, Measured | str, str]] = field(default_factory=list)


__all__ = ["Join", "Load", "PublishRun", "StepPlan", "WorkerReport"]
