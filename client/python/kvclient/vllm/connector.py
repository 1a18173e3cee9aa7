"""KvMarketConnector: vLLM's connector interface over the scheduler's and the worker's side."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from kvclient._native import Client, ModelSpec
from kvclient.errors import KvError, UnsupportedError
from kvclient.vllm.events import event_of
from kvclient.vllm.groups import groups_of
from kvclient.vllm.kv_pool import KvPool, obstacle
from kvclient.vllm.measuring import Measuring
from kvclient.vllm.metrics import MarketPromMetrics, MarketStats
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import StepPlan, WorkerReport
from kvclient.vllm.refusals import refusal
from kvclient.vllm.registration import EngineRegistration
from kvclient.vllm.releases import drafts_ahead, fails_by_request, hit_source, transfer_results
from kvclient.vllm.runner import before_each_step, uses_v2_runner
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.shared_client import SharedClient
from kvclient.vllm.weights import Measured
from kvclient.vllm.wishes import answer_of_prefill
from kvclient.vllm.worker import WorkerSide
from kvclient.vllm.worker_calls import Described, connectors
from kvclient.vllm.worker_memory import WorkerMemory

_log = logging.getLogger("vllm.kvclient")
_NO_MEMORY = "the worker has registered no KV memory"
_Hook = TypeVar("_Hook", bound=Callable[..., Any])


@dataclass
class _Plan(KVConnectorMetadata):
    plan: StepPlan = field(default_factory=StepPlan)


@dataclass
class _Report(KVConnectorWorkerMetadata):
    workers: list[WorkerReport]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, _Report)
        return _Report(self.workers + other.workers)


def _guarded(default: Callable[[], Any]) -> Callable[[_Hook], _Hook]:
    """A hook that fails turns the connector off, and the engine continues: no request may fail because of sharing."""

    def decorate(hook: _Hook) -> _Hook:
        @functools.wraps(hook)
        def call(self: KvMarketConnector, *args: Any, **kwargs: Any) -> Any:
            try:
                return hook(self, *args, **kwargs)
            except Exception as error:
                self._turn_off(f"{hook.__name__}: {type(error).__name__}: {error}", trace=True)
                return default()

        return call  # type: ignore[return-value]

    return decorate


class KvMarketConnector(KVConnectorBase_V1, SupportsHMA):
    """Shares an engine's KV blocks with the other engines of the node. Switch it on with

    ``--kv-transfer-config '{"kv_connector": "KvMarketConnector", "kv_connector_module_path": "kvclient.vllm",
    "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}'``; options: ``ConnectorOptions``.

    It turns itself off, with the reason in the log, where it can't be exact; the engine then runs as without it.
    """

    _cache_hit_source = hit_source()

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None) -> None:
        """InvalidArgumentError: a wrong option. ValueError: a setting that gives wrong results, with the reason."""
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        policy = getattr(transfer, "kv_load_failure_policy", "fail")
        if policy != "recompute":
            raise ValueError(
                f"KvMarketConnector needs kv_load_failure_policy=recompute in --kv-transfer-config (it is {policy!r}): "
                "a block whose source was reused during the copy is computed, which is no failure of the request"
            )
        self._options = ConnectorOptions.parse(transfer.kv_connector_extra_config)
        if self._options.load == "sync" and uses_v2_runner(vllm_config):
            raise ValueError(
                "KvMarketConnector: load=sync gives wrong tokens with vLLM's V2 model runner, which goes on from stale "
                "positions when a block fails (vLLM issue 49250); use load=async, or VLLM_USE_V2_MODEL_RUNNER=0"
            )
        if self._options.kv_pool == "exportable":
            why_not = obstacle(vllm_config, asks=hasattr(KVConnectorBase_V1, "get_mem_pool_context"))
            if why_not:
                raise ValueError(f"KvMarketConnector: kv_pool=exportable, but {why_not}")
        self._engine_id = str(getattr(transfer, "engine_id", "") or "")
        self._name = f"vllm-{os.getpid()}-{(self._engine_id or str(id(self)))[:8]}"
        self._off = ""
        self._client: Client | None = None
        self._scheduler = SchedulerSide(self._options) if role == KVConnectorRole.SCHEDULER else None
        self._worker = WorkerSide(self._options) if role == KVConnectorRole.WORKER else None
        self._memory: WorkerMemory | None = None
        self._kv_pool: KvPool | None = None
        self._registration: EngineRegistration | None = None
        self._measuring = Measuring()
        self._worker_of_vllm: Any = None
        self._pool: Any = None  # vLLM's BlockPool
        if role == KVConnectorRole.WORKER:
            connectors[self._engine_id] = self
        reason = refusal(vllm_config, kv_cache_config, by_request=fails_by_request(), load=self._options.load)
        if reason:
            self._turn_off(reason)

    def _turn_off(self, reason: str, trace: bool = False) -> None:
        if self._off:
            return
        self._off = reason
        _log.warning("KvMarketConnector is off: %s", reason, exc_info=trace)
        if self._worker is not None:
            self._worker.close()

    # ---- worker ----

    @_guarded(lambda: None)
    def get_mem_pool_context(self) -> AbstractContextManager[Any] | None:
        """What vLLM allocates its KV caches under; None: memory of its own."""
        if self._off or self._worker is None or self._options.kv_pool == "engine" or not torch.cuda.is_available():
            return None
        try:
            self._kv_pool = KvPool()
        except KvError as error:
            self._turn_off(f"kv_pool=exportable: {error}")
            return None
        return self._kv_pool.allocating()

    @_guarded(lambda: None)
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Record where the engine's KV memory lies. It is registered once all ranks' weights are known."""
        if self._off or self._worker is None:
            return
        try:
            self._memory = WorkerMemory(self._vllm_config, self._kv_cache_config, kv_caches, self._options)
        except KvError as error:
            self._turn_off(str(error))

    def measure(self, worker: Any) -> Measured:
        """Measure the weights that this worker has loaded. UnsupportedError: they can't be identified."""
        return self._memory_or_reason().measure(worker)

    def register_under(self, spec: ModelSpec) -> tuple[int, int, bool, str]:
        """Register this worker's memory under ``spec``: its ranks, whether it is registered, and an error."""
        memory = self._memory
        if self._off or self._worker is None or memory is None:
            return 0, 0, False, self._off or _NO_MEMORY
        try:
            if self._client is None:
                self._client = self._take_client(lookup_only=False)
            return *memory.ranks, memory.register(self._worker, self._client, spec, self._name), ""
        except KvError as error:
            self._turn_off(str(error))
            return *memory.ranks, False, str(error)

    def _take_client(self, *, lookup_only: bool) -> Client:
        return SharedClient.take(
            self._options.socket, self._name, lookup_only=lookup_only, verify_one_in=self._options.verify_one_in
        )

    def _memory_or_reason(self) -> WorkerMemory:
        """UnsupportedError: this worker shares none."""
        if self._off or self._memory is None:
            raise UnsupportedError(self._off or _NO_MEMORY)
        return self._memory

    @_guarded(lambda: None)
    def unregister_kv_caches(self) -> None:
        """Withdraw and unregister this worker's memory: vLLM is about to unmap it, to sleep."""
        self._measuring.finish()
        if self._worker is not None:
            self._worker.close()

    @_guarded(lambda: None)
    def restore_kv_caches(self) -> None:
        """Register this worker's memory again; nothing that it held before is published."""
        registered = self._memory.registered if self._memory is not None else None
        if self._worker is not None and registered is not None and not self._worker.sharing:
            self.register_under(registered)

    def registration(self) -> tuple[int, int, str]:
        """The worker's ranks, and the fingerprint under which its memory is registered; "": it is not.

        UnsupportedError: it can't be any more.
        """
        memory = self._memory_or_reason()
        assert self._worker is not None
        return *memory.ranks, self._worker.registered_under

    def describe(self, worker: Any) -> Described | str:
        """What this worker is going to register, or why it does not."""
        if self._memory is None:
            return self._off or _NO_MEMORY
        return self._memory.describe(worker)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        """None: a MultiConnector gives the first connector's metadata to all, and others refuse what is not theirs."""
        return None

    @_guarded(lambda: None)
    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Begin imports to blocks that the step does not write: ``start_load_kv`` comes after the forward pass."""
        if self._worker is not None and isinstance(kv_connector_metadata, _Plan):
            self._worker.before_step(kv_connector_metadata.plan)
            self._worker.start_early_loads(kv_connector_metadata.plan)

    @_guarded(lambda: None)
    def _before_step(self, metadata: Any) -> None:
        """Publish and withdraw, before the model runner touches any block. ``metadata``: of this or all connectors."""
        for each in getattr(metadata, "metadata", None) or (metadata,):
            if self._worker is not None and isinstance(each, _Plan):
                if each.plan.measure:
                    self._measuring.begin(each.plan.measure, lambda: self._measured(self._worker_of_vllm))
                self._worker.before_step(each.plan)

    def _measured(self, worker: Any) -> Measured | str:
        try:
            return self.measure(worker)
        except KvError as error:
            return str(error)

    def finish_measuring(self) -> None:
        """Wait until nothing reads the weights: they are about to be written or unmapped."""
        self._measuring.finish()

    def watch_steps(self, worker: Any) -> None:
        """Have ``_before_step`` called by this vLLM worker. UnsupportedError: it can't be."""
        if self._worker_of_vllm is None:
            before_each_step(worker, self._before_step)
            self._worker_of_vllm = worker

    @_guarded(lambda: None)
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begin the step's other imports."""
        if self._worker is not None:
            metadata = self._get_connector_metadata()
            assert isinstance(metadata, _Plan)
            self._worker.before_step(metadata.plan)
            self._worker.start_loads(metadata.plan)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Does nothing: imports are ordered by stream."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Does nothing: blocks are published without a copy."""

    def wait_for_save(self) -> None:
        """Does nothing."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose imports have ended."""
        if self._worker is None:
            return None, None
        finished = self._worker.finished_loads()
        return None, finished or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        """``get_finished``, and requests whose imports failed as a whole; the engine computes them."""
        finished = self.get_finished(finished_req_ids)[1] or set()
        return transfer_results(finished, self._worker.take_failed_requests() if self._worker is not None else set())

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks whose import failed; the engine computes them."""
        return self._worker.take_failed_blocks() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """Reports loads that the step waited for, and memory that has been registered."""
        if self._worker is None:
            return None
        report = self._worker.take_report()
        measured = self._measuring.take()
        if measured:
            report = report or WorkerReport()
            report.measured = [(number, *self._with_registration(result)) for number, result in measured]
        return _Report([report]) if report is not None else None

    def _with_registration(self, measured: Measured | str) -> tuple[Measured | str, str]:
        assert self._worker is not None
        try:
            return measured, self._worker.registered_under
        except KvError as error:  # the memory can't be registered any more
            return str(error), ""

    # ---- scheduler ----

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a block that is not published is only a miss, so a preempted request need not be computed again."""
        return False

    @_guarded(lambda: None)
    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """All workers have KV memory: measure the weights, register, and look up blocks from now on.

        ``metadata`` is that of other connectors, or empty.
        """
        if self._off or self._scheduler is None:
            return
        try:
            registration = EngineRegistration(self._vllm_config, self._options, self._engine_id, self._pool)
            # A worker in this process imports with the same client
            here = self._engine_id in connectors
            self._client = self._take_client(lookup_only=not here)
            self._registration = registration
            self._scheduler.attach(
                self._client,
                registration.begin(self._client, self._scheduler.adapters.loading),
                registration.shards,
                include_own=not registration.in_place,
                hashes=registration.hashes,
                model=registration.now,
                groups=groups_of(self._kv_cache_config, drafts_ahead=drafts_ahead(self._vllm_config)),
                by_request=fails_by_request(),
            )
            self._report_held(registration.block_tokens)
            registration.now(False)
        except KvError as error:
            self._turn_off(str(error))

    def _report_held(self, block_tokens: int) -> None:
        """Have ``take_events`` report, if the engine publishes KV events and has a hash for each block."""
        events, pool = getattr(self._vllm_config, "kv_events_config", None), self._pool
        if events is None or not events.enable_kv_cache_events or pool is None or pool.hash_block_size != block_tokens:
            return
        assert self._scheduler is not None
        self._scheduler.report_held(lambda content: pool.get_cached_block(content, [0]) is not None)

    def set_xfer_handshake_metadata(self, metadata: dict[int, KVConnectorHandshakeMetadata]) -> None:
        """``set_xfer_handshake_metadata_pp_aware`` of an engine without a pipeline."""
        self.set_xfer_handshake_metadata_pp_aware({(0, rank): each for rank, each in metadata.items()})

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """Take the pool whose hashes identify the content of each block."""
        if self._scheduler is not None:
            self._pool = gpu_block_pool
            self._scheduler.bind_pool(gpu_block_pool)
            if not gpu_block_pool.enable_caching and not self._off:
                self._turn_off(
                    "prefix caching is off, so nothing tells a block's content: start with --enable-prefix-caching"
                )

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Number of tokens that peers have published beyond those in the engine's own cache."""
        if self._off or self._scheduler is None:
            return 0, False
        try:  # as _guarded, whose wrapper would cost as much as a fifth of the call
            return self._scheduler.matched_tokens(request, num_computed_tokens)
        except Exception as error:
            self._turn_off(f"looking up a request: {type(error).__name__}: {error}", trace=True)
            return 0, False

    @_guarded(lambda: None)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Record the blocks for the tokens to import."""
        if self._off or self._scheduler is None:
            return
        if num_external_tokens:
            self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)
        else:
            self._scheduler.given(request, lambda: [each for table in blocks.get_block_ids() for each in table])

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """The step's plan; after a failure, one plan that withdraws all blocks, then empty ones."""
        assert self._scheduler is not None
        if not self._off:
            try:
                plan = self._scheduler.plan(scheduler_output)
                if self._registration is not None:
                    plan.measure = self._registration.measuring
                return _Plan(plan)
            except Exception as error:
                self._turn_off(f"planning a step: {type(error).__name__}: {error}", trace=True)
        if self._scheduler.active:
            return _Plan(self._scheduler.leave())
        return _Plan()

    @_guarded(lambda: None)
    def update_connector_output(self, connector_output: Any) -> None:
        """Take the workers' reports of imports that have ended."""
        assert self._scheduler is not None
        report = connector_output.kv_connector_worker_meta
        workers = report.workers if isinstance(report, _Report) else []
        waited = set().union(*(each.waited for each in workers))
        if self._registration is not None:
            self._registration.reported(workers)
            self._registration.look_for_near_misses()
        self._scheduler.joined(join for each in workers for join in each.joined)
        self._scheduler.failed_requests(getattr(connector_output, "failed_recving", ()))
        if connector_output.invalid_block_ids:
            self._scheduler.failed(connector_output.invalid_block_ids)
        self._scheduler.loaded(connector_output.finished_recving or (), waited)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Record the request's blocks that are still to be published; the engine may free them."""
        return False, self._request_finished(request)

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """``request_finished`` of an engine with several KV-cache groups."""
        return False, self._request_finished(request)

    @_guarded(lambda: None)
    def _request_finished(self, request: Any) -> dict[str, Any] | None:
        if self._scheduler is None or self._off:
            return None
        return answer_of_prefill(request, self._scheduler.finished(request))

    @_guarded(lambda: ())
    def take_events(self) -> Iterable[Any]:
        """KV events of the medium CPU: blocks of this engine's prefixes that it can import, or no longer can."""
        if self._scheduler is None:
            return ()
        group = self._kv_cache_config.kv_cache_groups[0].kv_cache_spec
        return [event_of(change, group) for change in self._scheduler.held_changes()]

    def reset_cache(self) -> bool | None:
        """Withdraw all blocks that this engine has published, with the next step."""
        if self._scheduler is not None:
            self._scheduler.reset()
        return True

    # ---- both ----

    def get_kv_connector_stats(self) -> MarketStats | None:
        """The counts since the last call."""
        side = self._scheduler or self._worker
        taken = side.counters.take() if side is not None else {}
        return MarketStats(data=taken) if taken else None

    def totals(self) -> dict[str, float]:
        """Counters of this side since the engine started; see kvclient.vllm.stats."""
        side = self._scheduler or self._worker
        return side.counters.totals() if side is not None else {}

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> MarketStats | None:
        """Statistics from their data."""
        return MarketStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]
    ) -> MarketPromMetrics:
        """Prometheus metrics ``vllm:kvmarket_…``."""
        return MarketPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """Withdraw all blocks and close the client."""
        self._measuring.finish()
        if self._worker is not None:
            self._worker.close()
        if self._scheduler is not None:
            self._scheduler.close()
        if self._registration is not None:
            self._registration.end()
        if self._client is not None:
            self._client = None
            SharedClient.give_back(self._options.socket, self._name)
