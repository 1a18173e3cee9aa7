"""The scheduler's side of registering: all workers' memory under one model, now and after its weights have changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvclient._native import Client, ModelSpec, Shard
from kvclient.errors import UnsupportedError
from kvclient.vllm.engine_hashes import engine_hashes
from kvclient.vllm.engine_model import EngineModel, executor_of
from kvclient.vllm.kv_shards import with_shards
from kvclient.vllm.near_misses import NearMissLog
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import WorkerReport
from kvclient.vllm.retried import Retried
from kvclient.vllm.runner import is_v2_runner
from kvclient.vllm.running_model import Now
from kvclient.vllm.spec import lengths_of, of_all_stages, source_of
from kvclient.vllm.weights import Measured
from kvclient.vllm.worker_calls import (
    Described,
    describe_worker,
    finish_measuring_worker,
    measure_worker,
    register_worker,
    registration_of_worker,
)


class EngineRegistration:
    """One for each engine. Called by the scheduler's thread only."""

    def __init__(self, config: Any, options: ConnectorOptions, engine_id: str, pool: Any) -> None:
        """Ask all workers what they are going to register. ``pool``: vLLM's BlockPool, if it is known.

        Must be called while the engine is being built, by what it calls. UnsupportedError: not all workers share.
        """
        parallel = config.parallel_config
        executor = executor_of(config)
        _check_policy(executor)
        described = executor.collective_rpc(describe_worker, args=(engine_id,))
        workers = sorted((each for each in described if isinstance(each, Described)), key=Described.rank)
        wanted = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        if len(workers) != wanted:
            why = next((f": {each}" for each in described if isinstance(each, str)), "")
            raise UnsupportedError(f"{len(workers)} of {wanted} workers share their memory{why}")
        spec = of_all_stages([(worker.pp_rank, worker.spec) for worker in workers])
        with_shards(spec, [worker.kv_shards for worker in workers], across_sizes=options.share_across_tp_sizes)
        self._hashes = engine_hashes(config, pool, spec.block_tokens) if options.keys == "auto" else None
        if self._hashes is not None:
            spec.tokenizer_digest = self._hashes.text
        self._spec, self._engine_id, self._load = spec, engine_id, options.load
        self._in_place = workers[0].in_place
        self._client: Client | None = None
        self._declared: ModelSpec | None = None
        self._declaring: Retried[Any] | None = None
        # Workers whose memory is not registered under it yet
        self._unregistered: set[tuple[int, int]] = set()
        self._near_misses = NearMissLog()
        # The declared model and what ``now`` answers, once all memory is registered under it
        self._settled: tuple[Any, Now] | None = None
        self._model = EngineModel(
            executor,
            self._measure_all,
            spec,
            given=options.weights_digest,
            source=lambda: source_of(config),
            lengths=lengths_of(config),
            spread=parallel.data_parallel_size > 1 and bool(getattr(parallel, "enable_expert_parallel", False)),
        )

    @property
    def hashes(self) -> Any:
        """The engine's own block hashes, where keys are derived from them; None: from tokens."""
        return self._hashes

    @property
    def in_place(self) -> bool:
        """Whether blocks are published where the engine has them."""
        return self._in_place

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return self._spec.block_tokens

    @property
    def shards(self) -> list[Shard]:
        """All shards of a block."""
        spec = self._spec
        return [
            Shard(tp_rank=index, tp_size=spec.tp_size, pp_rank=stage, pp_size=spec.pp_size)
            for stage in range(spec.pp_size)
            for index in range(spec.tp_size)
        ]

    @property
    def declared(self) -> ModelSpec | None:
        """What memory is registered under, or is going to be."""
        return self._declared

    @property
    def call(self) -> Callable[..., list[Any]]:
        """The executor's ``collective_rpc``, for calls that leave weights as they are."""
        return self._model.call

    def begin(self, client: Client, adapter_loading: Callable[[Any], Callable[[], None]]) -> ModelSpec:
        """Measure the weights: the whole spec. ``adapter_loading``: see EngineModel. UnsupportedError."""
        self._client = client
        self._model.adapter_loading = adapter_loading
        self._model.finish_measuring = lambda: self._model.call(finish_measuring_worker, args=(self._engine_id,))
        whole = self._model.settle()
        assert whole is not None  # an engine does not begin asleep
        if self._load == "sync" and is_v2_runner(self._model.runner):
            raise UnsupportedError("load=sync on a V2 model runner, though the configuration does not say it is one")
        return whole

    def now(self, reset: bool) -> Now:
        """The model that runs: not known while the engine sleeps, or while its weights are measured.

        ``reset``: the engine has emptied its prefix cache, as it does when weights change. KvError.
        """
        model = self._model
        if self._settled is not None and not reset and not model.suspect:
            return self._settled[1]
        self._settled = None
        model.suspect = model.suspect or reset
        spec = model.settle()
        doubts = model.doubts
        if spec is None:
            return Now(None, False, doubts)
        if self._declared is None or (spec is not self._declared and spec != self._declared):
            self._declare(spec)
        if self._unregistered or self._declaring is None:
            return Now(spec, False, doubts)
        declared = self._declaring.result()
        if declared is None:
            return Now(spec, False, doubts)
        self._settled = declared, Now(spec, True, doubts)
        self.look_for_near_misses()
        return self._settled[1]

    def look_for_near_misses(self) -> None:
        """Log why other engines' models differ; to be called now and then, outside of what a step waits for."""
        if self._settled is not None and self._client is not None:
            self._near_misses.look(self._client, self._settled[0])

    @property
    def measuring(self) -> int:
        """See EngineModel."""
        return self._model.measuring

    def reported(self, workers: Sequence[WorkerReport]) -> None:
        """Take workers' reports of memory that they have registered since, and of weights that they have measured."""
        for report in workers:
            for number, measured, registered in report.measured:
                if number == self._model.measuring and isinstance(measured, Measured) and self._declared is not None:
                    self._note_registered(measured.pp_rank, measured.tp_rank, registered)
                self._model.measured(number, measured)
        if not self._unregistered or self._declared is None:
            return
        ours = self._declared.fingerprint().hex
        self._unregistered -= {
            (pp_rank, tp_rank)
            for each in workers
            for pp_rank, tp_rank, fingerprint in each.registered
            if fingerprint == ours
        }

    def end(self) -> None:
        """Declare nothing any more; the client is about to be given back."""
        self._settled = None
        if self._declaring is not None:
            self._declaring.cancel()
        self._client = None

    def _measure_all(self, call: Callable[..., list[Any]]) -> Sequence[Measured]:
        measured = call(measure_worker, args=(self._engine_id,))
        for each in measured:
            if not isinstance(each, Measured):
                raise UnsupportedError(f"a worker's weights: {each}")
        if self._declared is not None:
            self._look_for_unregistered(call)
        return measured

    def _note_registered(self, pp_rank: int, tp_rank: int, fingerprint: str) -> None:
        """What a worker's memory is registered under: it may have unregistered it, to sleep."""
        assert self._declared is not None
        if fingerprint == self._declared.fingerprint().hex:
            self._unregistered.discard((pp_rank, tp_rank))
        else:
            self._unregistered.add((pp_rank, tp_rank))

    def _look_for_unregistered(self, call: Callable[..., list[Any]]) -> None:
        """Workers may have unregistered their memory, to sleep, and kvmd may not have answered since they woke up."""
        assert self._declared is not None
        for each in call(registration_of_worker, args=(self._engine_id,)):
            if isinstance(each, str):
                raise UnsupportedError(f"a worker's memory: {each}")
            self._note_registered(*each)

    def _declare(self, spec: ModelSpec) -> None:
        assert self._client is not None
        client = self._client
        if self._declaring is not None:
            self._declaring.cancel()
        self._declared, self._declaring = spec, None
        self._unregistered = set()
        for pp_rank, tp_rank, done, reason in self._model.call(
            register_worker, args=(self._engine_id, spec.canonical())
        ):
            if reason:
                raise UnsupportedError(f"worker {pp_rank}.{tp_rank}: {reason}")
            if not done:
                self._unregistered.add((pp_rank, tp_rank))
        self._declaring = Retried("declaring the model", lambda: client.declare_model(spec))


def _check_policy(executor: Any) -> None:
    """UnsupportedError: the engine ends requests whose load fails. A connector of several sees its own policy alone."""
    transfer = getattr(getattr(executor, "vllm_config", None), "kv_transfer_config", None)
    policy = getattr(transfer, "kv_load_failure_policy", "recompute")
    if policy != "recompute":
        raise UnsupportedError(
            f"kv_load_failure_policy must be recompute in --kv-transfer-config itself (it is {policy!r}), as well as "
            "in this connector's part of kv_connector_extra_config"
        )


__all__ = ["EngineRegistration"]
