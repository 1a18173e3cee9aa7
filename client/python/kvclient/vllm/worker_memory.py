"""A worker's KV memory: where it lies, what it is going to be registered as, and its registration."""

from __future__ import annotations

import logging
from typing import Any

import torch

from kvclient._native import Client, ModelSpec, Shard
from kvclient.vllm.groups import attention_spec, describe, layer_specs, named_tokens
from kvclient.vllm.kv_shards import Rank, count_shards, shard_of
from kvclient.vllm.layout import KvLayout, read_layout
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.releases import attention_backends, block_dimension, worker_ranks
from kvclient.vllm.spec import spec_of
from kvclient.vllm.weights import Measured, measure, models_of
from kvclient.vllm.worker import WorkerSide
from kvclient.vllm.worker_calls import Described

_log = logging.getLogger("vllm.kvclient")


class WorkerMemory:
    """The KV memory of one worker. Not thread-safe: it is called by the worker's thread."""

    def __init__(
        self, config: Any, kv_cache_config: Any, kv_caches: dict[str, torch.Tensor], options: ConnectorOptions
    ) -> None:
        """Read the layout of an engine's KV caches, by layer. KvError: blocks of this layout can't be shared."""
        groups = kv_cache_config.kv_cache_groups
        spec_of_layer = {
            name: getattr(group.kv_cache_spec, "kv_cache_specs", {}).get(name, layer_specs(group.kv_cache_spec)[0])
            for group in groups
            for name in group.layer_names
        }
        kv_spec = attention_spec(kv_cache_config)
        backends = attention_backends(config, kv_caches)
        blocks = kv_cache_config.num_blocks

        def block_dim(layer: str) -> int | None:
            dtype = config.cache_config.cache_dtype
            of_layer = spec_of_layer.get(layer, kv_spec)
            return block_dimension(backends.get(layer), of_layer, dtype, kv_caches[layer], blocks)

        self._layout = read_layout(kv_caches, blocks, block_dim, describe(kv_cache_config, list(kv_caches)))
        names = sorted({backend.get_name() for backend in backends.values()})
        spec = spec_of(
            config,
            kv_spec,
            layout=self._layout.text,
            backend="+".join(names),
            options=options,
            block_tokens=named_tokens(kv_cache_config),
        )
        self._kv_caches = dict(kv_caches)
        self._kv_specs = {layer: spec_of_layer.get(layer, kv_spec) for layer in kv_caches}
        self._described = Described(spec.canonical(), *worker_ranks(), self._layout.device.type == "cuda")
        self._tp_size = config.parallel_config.tensor_parallel_size
        self._registered: ModelSpec | None = None
        self._times_registered = 0
        _log.info("KvMarketConnector: %s blocks of %d bytes, %s", blocks, self._layout.block_bytes, self._layout.text)

    @property
    def layout(self) -> KvLayout:
        """Where its blocks lie."""
        return self._layout

    @property
    def ranks(self) -> tuple[int, int]:
        """The worker's stage, and its rank in that."""
        return self._described.rank()

    @property
    def registered(self) -> ModelSpec | None:
        """What it was last registered as; None: it never was."""
        return self._registered

    def measure(self, worker: Any) -> Measured:
        """Measure the weights that the vLLM worker has loaded. UnsupportedError: they can't be identified."""
        return measure(worker, *self.ranks, self._kv_caches)

    def describe(self, worker: Any) -> Described:
        """What the vLLM worker is going to register."""
        if self._tp_size > 1:
            self._described.kv_shards = count_shards(models_of(worker).values(), self._kv_specs, self._tp_size)
        return self._described

    def register(self, side: WorkerSide, client: Client, spec: ModelSpec, name: str) -> bool:
        """Register it under ``spec``, as a region whose name begins with ``name``: whether it is by now. KvError."""
        pp_rank, tp_rank = self.ranks
        index, replica = shard_of(tp_rank, self._tp_size, spec.tp_size)
        shard = Shard(tp_rank=index, tp_size=spec.tp_size, pp_rank=pp_rank, pp_size=spec.pp_size)
        again = f".{self._times_registered}" if self._times_registered else ""
        self._times_registered += 1
        region = f"{name}-{pp_rank}.{tp_rank}{again}"
        done = side.attach(client, spec, shard, self._layout, region, rank=Rank(pp_rank, tp_rank), replica=replica)
        self._registered = spec
        return done


__all__ = ["WorkerMemory"]
