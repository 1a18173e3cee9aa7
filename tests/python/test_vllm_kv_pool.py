"""kvclient.vllm without vLLM: the pool that its KV caches are allocated in, if the engine asks for one."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from kvclient.errors import InvalidArgumentError, KvError
from kvclient.vllm import kv_pool
from kvclient.vllm.options import ConnectorOptions


def config(*, sleeps: bool) -> SimpleNamespace:
    return SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=sleeps))


def test_the_option_names_a_kind_of_memory() -> None:
    assert ConnectorOptions.parse({}).kv_pool == "engine"
    assert ConnectorOptions.parse({"kv_pool": "exportable"}).kv_pool == "exportable"
    with pytest.raises(InvalidArgumentError, match="kv_pool is 'shared', not engine or exportable"):
        ConnectorOptions.parse({"kv_pool": "shared"})


def test_an_engine_that_would_share_read_write_memory_instead_is_told_why() -> None:
    assert kv_pool.obstacle(config(sleeps=False), asks=True) == ""
    assert kv_pool.obstacle(SimpleNamespace(model_config=None), asks=True) == ""
    assert "0.31 and later" in kv_pool.obstacle(config(sleeps=False), asks=False)
    assert "sleep mode" in kv_pool.obstacle(config(sleeps=True), asks=True)


def test_what_is_allocated_under_it_comes_from_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = [object()]
    used: list[object] = []
    monkeypatch.setattr(kv_pool, "mem_pool", lambda: pools[0])
    monkeypatch.setattr(torch.cuda, "use_mem_pool", lambda pool: used.append(pool) or nullcontext())
    with kv_pool.KvPool().allocating():
        assert used == pools


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_where_there_is_no_gpu_it_says_so() -> None:
    with pytest.raises(KvError):
        kv_pool.KvPool()
