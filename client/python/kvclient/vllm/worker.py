"""A worker's side: carries out the scheduler's plans on the memory that the engine has registered."""

from __future__ import annotations

import logging
import time

from kvclient._native import Client, ModelSpec, Shard
from kvclient.errors import KvError
from kvclient.vllm.layout import KvLayout
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import Load, StepPlan, WorkerReport
from kvclient.vllm.stats import Counters
from kvclient.vllm.stores import BlockMemory, InPlaceMemory, PendingLoad, Run, TimedLoad, share

_log = logging.getLogger(__name__)


class WorkerSide:
    """One for each worker process. Called by its model thread only."""

    def __init__(self, options: ConnectorOptions) -> None:
        """Inactive until ``attach``: plans are ignored, loads fail."""
        self._options = options
        self.counters = Counters()
        self.memory: BlockMemory | None = None
        self._shard_index = 0
        self._loads: list[TimedLoad] = []
        self._failed_blocks: set[int] = set()
        self._report = WorkerReport()
        self._applied: StepPlan | None = None

    def attach(self, client: Client, spec: ModelSpec, shard: Shard, layout: KvLayout, name: str) -> None:
        """Register the engine's memory. KvError: it can't be shared, with the reason; nothing has changed then."""
        model = client.declare_model(spec)
        self._shard_index = shard.pp_rank * spec.tp_size + shard.tp_rank
        self.memory = share(client, model, shard, layout, self._options, name, self.counters)

    @property
    def in_place(self) -> bool:
        """Whether the engine's own blocks are what is published."""
        return isinstance(self.memory, InPlaceMemory)

    def before_step(self, plan: StepPlan) -> None:
        """Before anything of the step writes to KV memory. Once for each plan, however often it is called."""
        if plan is self._applied:
            return
        self._applied = plan
        if self.memory is None:
            return
        index = self._shard_index
        try:
            if plan.publish:
                runs = [Run(each.blocks, each.keys[index], each.parents[index], each.depth) for each in plan.publish]
                self.memory.publish(runs)
        except KvError as error:
            self._note("publish", error)
        if plan.withdraw_all:
            self.memory.withdraw_all()
        if plan.begin:
            self.memory.begin(plan.begin)

    def start_loads(self, plan: StepPlan) -> None:
        """Begin the imports of a plan."""
        for load in plan.loads:
            timed = TimedLoad(load.request_id, load.blocks, load.wait)
            if self.memory is not None:
                try:
                    timed.load = self._start(load)
                except Exception as error:  # a request whose load is never reported as done would hang
                    self._note("import", error)
            self._loads.append(timed)

    def _start(self, load: Load) -> PendingLoad:
        assert self.memory is not None
        index = self._shard_index
        return self.memory.load(load.keys[index], load.parents[index], load.depth, load.blocks, load.wait)

    def finished_loads(self) -> set[str]:
        """Requests whose background loads are done. Waits for the loads that the step itself needed."""
        ready = [load for load in self._loads if load.waits or load.done()]
        if not ready:
            return set()
        self._loads = [load for load in self._loads if load not in ready]
        finished: set[str] = set()
        for load in ready:
            valid = load.valid()
            self._failed_blocks.update(load.blocks[valid:])
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

    def take_report(self) -> WorkerReport | None:
        """For the scheduler's side; None if there is nothing to tell."""
        report, self._report = self._report, WorkerReport()
        return report if report.waited else None

    def close(self) -> None:
        """Take the memory out of the marketplace; waits up to two seconds for importers."""
        memory, self.memory = self.memory, None
        if memory is None:
            return
        for load in self._loads:
            load.valid()
        try:
            memory.withdraw_all()
            memory.region.unregister(2.0)
        except KvError as error:
            _log.warning("kvclient: leaving the marketplace: %s", error)
        memory.region.close()

    def _note(self, what: str, error: Exception) -> None:
        self.counters.add("errors", 1)
        _log.warning("kvclient: %s: %s", what, error)


__all__ = ["WorkerSide"]
