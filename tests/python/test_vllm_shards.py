"""Ranks that hold the same KV: one key for all of them, and one of them that publishes each block."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.errors import InvalidArgumentError
from kvclient.vllm.kv_shards import Rank, Replica, count_shards, published_by, shard_of, with_shards
from kvclient.vllm.layout import read_layout
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import PublishRun, StepPlan
from kvclient.vllm.worker import WorkerSide
from support.specs import small_spec
from support.waiting import eventually


class MLAAttentionSpec:
    """Named as vLLM's, by which the connector knows it."""

    num_kv_heads = 1


def heads(count: int) -> Any:
    return SimpleNamespace(num_kv_heads=count)


def attention(layer: str, total_kv_heads: int | None) -> torch.nn.Module:
    """As vLLM's attention modules: the projection beside the layer. None: another kind of projection."""
    made, projection, core = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
    if total_kv_heads is not None:
        projection.total_num_kv_heads = total_kv_heads
        projection.num_kv_head_replicas = 1
    core.layer_name = layer
    made.qkv_proj, made.attn = projection, core
    return made


@pytest.mark.parametrize(
    ("total_kv_heads", "spec", "ranks", "shards"),
    [
        (2, heads(1), 4, 2),
        (1, heads(1), 4, 1),
        (4, heads(1), 4, 4),
        (8, heads(2), 4, 4),
        (None, heads(1), 4, 4),
        (None, MLAAttentionSpec(), 4, 1),
        (3, heads(1), 4, 4),
        (2, heads(1), 1, 1),
    ],
)
def test_there_are_as_many_shards_as_different_kv(
    total_kv_heads: int | None, spec: Any, ranks: int, shards: int
) -> None:
    assert count_shards([attention("l.0", total_kv_heads)], {"l.0": spec}, ranks) == shards


def test_layers_that_are_divided_differently_are_shards_by_rank() -> None:
    models = [attention("l.0", 2), attention("l.1", 1)]
    assert count_shards(models, {"l.0": heads(1), "l.1": heads(1)}, 4) == 4
    assert count_shards(models[:1], {"l.0": heads(1), "l.1": heads(1)}, 4) == 4
    assert count_shards(models, {"l.0": MLAAttentionSpec(), "l.1": MLAAttentionSpec()}, 4) == 1


def test_neighbouring_ranks_hold_a_shard() -> None:
    assert [shard_of(rank, 4, 2) for rank in range(4)] == [
        (0, Replica(0, 2)),
        (0, Replica(1, 2)),
        (1, Replica(0, 2)),
        (1, Replica(1, 2)),
    ]
    assert [shard_of(rank, 2, 2) for rank in range(2)] == [(0, Replica()), (1, Replica())]


@pytest.mark.parametrize("depth", [0, 5, 31, 32, 70])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_block_of_a_run_is_published_by_one_rank(depth: int, count: int) -> None:
    chain = kvclient.KeyChain(small_spec())
    root = chain.parent
    keys = chain.extend(list(range(4 * 150)))
    seen: list[int] = []
    for index in range(count):
        for first, last, parent in published_by(Replica(index, count), keys, root, depth):
            assert first < last
            assert parent == (keys[first - 1] if first else root)
            seen += range(first, last)
    assert sorted(seen) == list(range(150))


def test_sizes_with_as_many_shards_share_only_on_request() -> None:
    def fingerprint(ranks: int, shards: int, *, across: bool) -> str:
        spec = small_spec(weights_digest="config=1", tp_size=ranks)
        with_shards(spec, [shards] * ranks, across_sizes=across)
        assert spec.tp_size == shards
        return spec.fingerprint().hex

    assert fingerprint(4, 2, across=False) != fingerprint(2, 2, across=False)
    assert fingerprint(4, 2, across=True) == fingerprint(2, 2, across=True)
    assert fingerprint(4, 4, across=True) != fingerprint(2, 2, across=True)


def test_workers_that_do_not_agree_are_shards_by_rank() -> None:
    spec = small_spec(tp_size=4)
    with_shards(spec, [1, 1, 2, 2], across_sizes=True)
    assert spec.tp_size == 4


def test_sharing_across_sizes_needs_a_name_for_the_weights() -> None:
    with pytest.raises(InvalidArgumentError, match="weights_digest"):
        ConnectorOptions.parse({"share_across_tp_sizes": True})
    assert ConnectorOptions.parse({"share_across_tp_sizes": True, "weights_digest": "w"}).share_across_tp_sizes


def test_a_prefix_that_ranks_hold_alike_has_each_block_once(kvmd: PrivateDaemon) -> None:
    """Two workers of one shard: together they publish a prefix, each a part; each reports its own registration."""
    spec, blocks = small_spec(), 80
    chain = kvclient.KeyChain(spec)
    root = chain.parent
    keys = chain.extend(list(range(4 * blocks)))
    plan = StepPlan(publish=[PublishRun(list(range(blocks)), 0, [keys], [root])])
    options = ConnectorOptions(socket=kvmd.socket, host_cache_bytes=1 << 16)
    clients, sides = [], []
    for rank in range(2):
        clients.append(kvclient.Client(kvmd.socket, name=f"rank{rank}"))
        layout = read_layout({"l.0": torch.zeros(blocks, 64)}, blocks)
        side = WorkerSide(options)
        place = {"rank": Rank(0, rank), "replica": Replica(rank, 2)}
        assert side.attach(clients[-1], spec, kvclient.Shard(), layout, f"rank{rank}", **place)
        report = side.take_report()
        assert report is not None
        assert report.registered == {(0, rank, spec.fingerprint().hex)}
        sides.append(side)
    for side in sides:
        side.before_step(plan)
    eventually(lambda: len(clients[0].find(keys)) == blocks)
    published = [client.stats().blocks_published for client in clients]
    assert published == [48, 32]
    for side in sides:
        side.close()
    for client in clients:
        client.close()
