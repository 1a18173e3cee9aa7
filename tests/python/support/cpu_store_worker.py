"""A worker process with the memory that the vLLM connector gives an engine on a CPU."""

from __future__ import annotations

import torch

import kvclient
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.layout import read_layout
from kvclient.vllm.stats import Counters
from kvclient.vllm.stores import Run, share
from support.specs import small_spec

SPEC = small_spec(model_id="cpu")


class CpuStore:
    def __init__(self, socket: str, name: str) -> None:
        self.client = kvclient.Client(socket, name=name)
        self.model = self.client.declare_model(SPEC)
        layout = read_layout({"layer.0": torch.ones(10, 2, 4, 1, 8)}, 10)
        options = ConnectorOptions(host_cache_bytes=1 << 20)
        self.memory = share(self.client, self.model, kvclient.Shard(), layout, options, name, Counters())

    def publish(self, tokens: list[int]) -> None:
        chain = kvclient.KeyChain(self.model)
        parent = chain.parent
        keys = chain.extend(tokens)
        self.memory.publish([Run(list(range(len(keys))), keys, parent, 0)])


def make(socket: str, name: str) -> CpuStore:
    return CpuStore(socket, name)
