"""The worker's side: it carries out the scheduler's plans on the memory that the engine has registered."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from kvclient._native import Client, ModelSpec, Shard
from kvclient.errors import InvalidArgumentError, KvError
from kvclient.vllm.joins import WorkerJoins
from kvclient.vllm.kv_shards import ONLY, Rank, Replica, published_by
from kvclient.vllm.layout import KvLayout
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import Load, StepPlan, WorkerReport
from kvclient.vllm.retried import Retried
from kvclient.vllm.stats import Counters
from kvclient.vllm.stores import BlockMemory, PendingLoad, Run, TimedLoad, share

_log = logging.getLogger(__name__)
_NULL_BLOCK = 0  # vLLM's, which no request writes to


class WorkerSide:
    """One for each worker process. Called by its model thread only."""

    def __init__(self, options: ConnectorOptions) -> None:
        """Inactive until ``attach``: plans are ignored, loads fail."""
        self._options = options
        self.counters = Counters()
        self._client: Client | None = None
        self._joins = WorkerJoins(options)
        self._memory: BlockMemory | None = None
        self._coming: Retried[BlockMemory] | None = None
        self._rank = Rank(0, 0)
        self._replica = ONLY
        self._shard_index = 0
        self._fingerprint = ""
        self._loads: list[TimedLoad] = []
        self._failed_blocks: set[int] = set()
        self._failed_requests: set[str] = set()
        self._report = WorkerReport()
        self._applied: StepPlan | None = None
        self._started: StepPlan | None = None
        self._started_early: StepPlan | None = None

    def attach(
        self,
        client: Client,
        spec: ModelSpec,
        shard: Shard,
        layout: KvLayout,
        name: str,
        *,
        rank: Rank | None = None,
        replica: Replica = ONLY,
    ) -> bool:
        """Register the engine's memory under ``spec``; an earlier registration ends. Whether it has been registered.

        ``rank``: the worker's; default: the shard's. ``replica``: which one of the ranks that hold the same.

        False: kvmd did not answer in time. The registration is then retried in the background, and ``take_report``
        reports its success. Any other KvError: the memory can't be shared, for the reason given, and is not registered.
        """
        self.close()
        self._client = client
        self._rank, self._replica = rank or Rank(shard.pp_rank, shard.tp_rank), replica
        self._shard_index = shard.pp_rank * spec.tp_size + shard.tp_rank
        self._fingerprint = spec.fingerprint().hex

        def register() -> BlockMemory:
            model = client.declare_model(spec)
            return share(client, model, shard, layout, self._options, name, self.counters)

        self._coming = Retried(f"registering {name}", register, _leave)
        return self.memory is not None

    def serve(self, memory: BlockMemory, spec: ModelSpec) -> None:
        """Use ``memory``, which has been registered under ``spec``."""
        self._memory, self._fingerprint = memory, spec.fingerprint().hex

    @property
    def memory(self) -> BlockMemory | None:
        """The registered memory; None: none is registered (yet). KvError: the registration has failed for good."""
        if self._memory is None and self._coming is not None:
            try:
                self._memory = self._coming.result()
            except KvError:
                self._coming = None
                raise
            if self._memory is not None:
                self._coming = None
                self._report.registered.add((*self._rank, self._fingerprint))
        return self._memory

    @property
    def sharing(self) -> bool:
        """Whether memory has been registered, or a registration is under way."""
        return self._memory is not None or self._coming is not None

    @property
    def registered_under(self) -> str:
        """Fingerprint of the model that memory is registered under; "": none is. KvError: as ``memory``."""
        return self._fingerprint if self.memory is not None else ""

    def before_step(self, plan: StepPlan) -> None:
        """Publish and withdraw, before the step writes to KV memory. Further calls with the same plan do nothing."""
        if plan is self._applied:
            return
        self._applied = plan
        memory = self.memory
        if memory is None:
            return
        index = self._shard_index
        try:
            if plan.publish and self._is_of(plan):
                memory.publish(
                    [
                        Run(each.blocks[first:last], each.keys[index][first:last], parent, each.depth + first)
                        for each in plan.publish
                        for first, last, parent in published_by(
                            self._replica, each.keys[index], each.parents[index], each.depth
                        )
                    ]
                )
        except KvError as error:
            self._note("publish", error)
        if plan.withdraw_all:
            memory.withdraw_all()
        if plan.begin:
            memory.begin(plan.begin)
        # One rank asks for all that hold the same
        if self._client is not None and self._replica.index == 0 and self._is_of(plan):
            for join in plan.joins:
                self._joins.start(self._client, memory.region, join, join.keys[index])

    def _is_of(self, plan: StepPlan) -> bool:
        """Whether the plan's keys are of the model that the memory is registered under."""
        return plan.model in ("", self._fingerprint)

    def start_early_loads(self, plan: StepPlan) -> None:
        """Begin the imports that need not wait for the step's own work. Further calls with the same plan do nothing."""
        if plan is not self._started_early:
            self._started_early = plan
            self._start_all(plan, [load for load in plan.loads if load.early])

    def start_loads(self, plan: StepPlan) -> None:
        """Begin the imports of a plan that have not begun. Further calls with the same plan do nothing."""
        if plan is not self._started:
            self._started = plan
            begun = plan is self._started_early
            self._start_all(plan, [load for load in plan.loads if not (begun and load.early)])

    def _start_all(self, plan: StepPlan, loads: Sequence[Load]) -> None:
        for load in loads:
            timed = TimedLoad(load.request_id, load.blocks, load.wait, load.whole)
            if self.memory is not None and self._is_of(plan):
                try:
                    timed.load = self._start(load)
                # A request whose load is never reported as done would hang
                except Exception as error:
                    self._note("import", error)
            self._loads.append(timed)

    def _start(self, load: Load) -> PendingLoad:
        assert self.memory is not None
        if _NULL_BLOCK in load.blocks:
            raise InvalidArgumentError("the engine has no block for a part of the prefix")
        index = self._shard_index
        return self.memory.load(load.keys[index], load.parents[index], load.depth, load.blocks, load.wait)

    def finished_loads(self) -> set[str]:
        """Requests whose background loads are done. Waits for the loads that the step itself needed."""
        under_way = {load.request_id for load in self._loads if not load.waits and not load.done()}
        ready = [load for load in self._loads if load.request_id not in under_way]
        if not ready:
            return set()
        self._loads = [load for load in self._loads if load not in ready]
        finished: set[str] = set()
        for load in ready:
            valid = load.valid()
            if not load.whole:
                self._failed_blocks.update(load.blocks[valid:])
            elif valid < len(load.blocks):
                self._failed_requests.add(load.request_id)
            self.counters.add("imported_blocks", valid)
            self.counters.add("failed_blocks", len(load.blocks) - valid)
            if self.memory is not None:
                self.counters.add("imported_bytes", valid * self.memory.region.block_bytes)
            self.counters.time("import", time.perf_counter() - load.began)
            (self._report.waited if load.waits else finished).add(load.request_id)
        return finished

    def take_failed_blocks(self) -> set[int]:
        """Blocks whose load failed since the last call."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_failed_requests(self) -> set[str]:
        """Requests of which a load failed that is ``whole``, since the last call."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def take_report(self) -> WorkerReport | None:
        """The report to the scheduler's side; None: there is no news."""
        report, self._report = self._report, WorkerReport()
        report.joined = self._joins.ended()
        return report if report.waited or report.registered or report.joined else None

    def close(self) -> None:
        """Unregister the memory; waits up to two seconds for importers."""
        self._joins.close()
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.cancel()
            try:
                self._memory = self._memory or coming.result()
            except KvError as error:
                _log.warning("kvclient: registering memory: %s", error)
        memory, self._memory = self._memory, None
        if memory is None:
            return
        for load in self._loads:
            load.valid()
        _leave(memory)

    def _note(self, what: str, error: Exception) -> None:
        self.counters.add("errors", 1)
        _log.warning("kvclient: %s: %s", what, error)


def _leave(memory: BlockMemory) -> None:
    try:
        memory.withdraw_all()
        memory.region.unregister(2.0)
    except KvError as error:
        _log.warning("kvclient: leaving the marketplace: %s", error)
    memory.region.close()


__all__ = ["WorkerSide"]
