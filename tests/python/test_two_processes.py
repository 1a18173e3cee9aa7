"""Blocks from one process to another: the traps that earlier systems fell into."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import kvclient
from kvclient.daemon import PrivateDaemon
from support.block_worker import BLOCK_BYTES, BLOCK_TOKENS, prompt, spec
from support.waiting import eventually
from support.worker import Worker

MODULE = "support.block_worker"
Start = Callable[..., Worker]


def adopt_error(client: kvclient.Client, model: kvclient.Model, blocks: int) -> type[Exception]:
    with pytest.raises(kvclient.KvError) as raised:
        client.adopt_region(model, kvclient.Geometry.contiguous(blocks, BLOCK_BYTES), name="pool", timeout_s=10)
    return raised.type


def test_what_one_process_publishes_another_imports_byte_for_byte(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("owner", "reader"))
    tokens = prompt(10)
    assert reader.call("find", tokens) == (0, "ABSENT")
    assert owner.call("publish", tokens, list(range(10))) == 10
    assert reader.call("find", tokens) == (10, "COMPLETE")
    assert reader.call("fetch", tokens, list(range(20, 30))) == (10, 0)
    assert reader.call("stats")["bytes_imported"] == 10 * BLOCK_BYTES


def test_block_order_is_kept_under_coalescing(kvmd: PrivateDaemon, start_worker: Start) -> None:
    """Runs that can be copied in one piece, next to runs that can't, in both directions."""
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("owner", "reader"))
    sources = [5, 6, 7, 3, 2, 1, 40, 42, 41, 10, 11, 12, 13, 0, 63, 20]
    targets = [50, 51, 49, 9, 8, 7, 30, 31, 32, 33, 2, 1, 0, 60, 61, 62]
    tokens = prompt(len(sources))
    owner.call("publish", tokens, sources)
    assert reader.call("fetch", tokens, targets) == (len(sources), 0)


@pytest.mark.parametrize("missing", [0, 1, 4, 9])
def test_a_gap_of_one_block_is_not_bridged(kvmd: PrivateDaemon, start_worker: Start, missing: int) -> None:
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("owner", "reader"))
    tokens = prompt(10)
    if missing:
        owner.call("publish", tokens, list(range(missing)), first=0, count=missing)
    if missing < 9:
        owner.call("publish", tokens, list(range(missing + 1, 10)), first=missing + 1)
    assert reader.call("find", tokens) == (missing, "ABSENT")
    assert reader.call("fetch", tokens, list(range(10))) == (missing, 0)


def test_a_block_that_is_retracted_ends_the_match(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("owner", "reader"))
    tokens = prompt(8)
    owner.call("publish", tokens, list(range(8)))
    owner.call("retract", [3])
    assert reader.call("find", tokens)[0] == 3


def test_a_shorter_prefix_is_found_behind_a_longer_one(kvmd: PrivateDaemon, start_worker: Start) -> None:
    longer, shorter, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("longer", "shorter", "reader"))
    tokens = prompt(12)
    shorter.call("publish", tokens, list(range(5)), first=0, count=5)
    longer.call("publish", tokens, list(range(12)))
    assert reader.call("find", tokens) == (12, "COMPLETE")
    longer.kill()
    client = kvclient.Client(kvmd.socket, name="operator")
    eventually(lambda: client.reclaim_orphans(name="longer").regions == 1)
    client.close()
    assert reader.call("find", tokens)[0] == 5
    assert reader.call("fetch", tokens, list(range(5))) == (5, 0)


def test_a_killed_workers_pool_serves_on_and_is_adopted(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("pool", "reader"))
    tokens = prompt(8)
    owner.call("publish", tokens, list(range(8)))
    owner.call("retract", [6])
    owner.kill()
    assert reader.call("fetch", tokens, list(range(6))) == (6, 0)
    client = kvclient.Client(kvmd.socket, name="adopter")
    model = client.declare_model(spec())
    geometry = kvclient.Geometry.contiguous(64, BLOCK_BYTES)
    # Until kvmd has seen the end of the process, it has an owner.
    eventually(lambda: adopt_error(client, model, 65) is not kvclient.errors.AlreadyExistsError)
    assert adopt_error(client, model, 65) is kvclient.errors.BadGeometryError
    region, blocks = client.adopt_region(model, geometry, name="pool", timeout_s=10)
    chain = kvclient.KeyChain(model)
    keys = list(chain.extend(tokens))
    assert [(each.block, each.depth, each.key) for each in blocks] == [(b, b, keys[b]) for b in range(8) if b != 6]
    assert region.name == "pool"
    region.begin_write(2)
    assert reader.call("find", tokens)[0] == 2
    with pytest.raises(kvclient.errors.AlreadyExistsError, match="has it"):
        client.adopt_region(model, geometry, name="pool")
    assert client.reclaim_orphans().regions == 0
    client.close()


def test_a_prompt_that_diverges_matches_up_to_the_last_common_block(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("owner", "reader"))
    tokens = prompt(8)
    owner.call("publish", tokens, list(range(8)))
    other = list(tokens)
    other[5 * BLOCK_TOKENS + 1] += 1
    assert reader.call("find", other) == (5, "ABSENT")
    assert reader.call("find", tokens[: 3 * BLOCK_TOKENS + 2]) == (3, "COMPLETE")


def test_peers_find_what_was_published_before_and_after_they_came(kvmd: PrivateDaemon, start_worker: Start) -> None:
    early = start_worker(MODULE, kvmd.socket, "early")
    before, after, back = prompt(6, seed=1), prompt(6, seed=2), prompt(6, seed=3)
    early.call("publish", before, list(range(6)))
    late = start_worker(MODULE, kvmd.socket, "late")
    assert late.call("fetch", before, list(range(6))) == (6, 0)
    early.call("publish", after, list(range(6, 12)))
    assert late.call("fetch", after, list(range(6, 12))) == (6, 0)
    late.call("publish", back, list(range(12, 18)))
    assert early.call("fetch", back, list(range(12, 18))) == (6, 0)


def test_counters_count_validated_imports_only(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner = start_worker(MODULE, kvmd.socket, "owner")
    with kvclient.Client(kvmd.socket, name="reader") as client:
        tokens = prompt(8)
        owner.call("publish", tokens, list(range(8)))
        from support.block_worker import content, spec

        model = client.declare_model(spec())
        region = client.allocate_region(model, kvclient.Geometry.contiguous(8, BLOCK_BYTES), name="reader")
        keys = kvclient.KeyChain(model).extend(tokens)
        match = client.find(keys)
        assert len(match) == 8
        owner.call("retract", [5])  # between find and import
        result = client.import_blocks(match, region, list(range(8))).wait(5.0)
        assert result.valid == 5
        assert [each.reason.name for each in result.failed] == [
            "STALE",
            "BEHIND_FAILED",
            "BEHIND_FAILED",
        ]
        stats = client.stats()
        assert (stats.blocks_imported, stats.blocks_failed, stats.bytes_imported) == (
            5,
            3,
            5 * BLOCK_BYTES,
        )
        for index in range(result.valid):
            assert region.block(index).tobytes() == content(keys[index])
        region.close()


@pytest.mark.parametrize("kind", ["LORA", "CACHE_SALT"])
def test_other_extra_keys_share_nothing(kvmd: PrivateDaemon, start_worker: Start, kind: str) -> None:
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("owner", "reader"))
    tokens = prompt(4)
    owner.call("publish", tokens, [0, 1, 2, 3], extras=[(kind, "a")])
    assert reader.call("find", tokens, [(kind, "a")]) == (4, "COMPLETE")
    assert reader.call("find", tokens, [(kind, "b")]) == (0, "ABSENT")
    assert reader.call("find", tokens) == (0, "ABSENT")


def test_another_revision_shares_nothing_and_the_field_is_named(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner = start_worker(MODULE, kvmd.socket, "owner")
    reader = start_worker(MODULE, kvmd.socket, "reader", 64, {"revision": "r2"})
    tokens = prompt(4)
    owner.call("publish", tokens, [0, 1, 2, 3])
    assert reader.call("find", tokens) == (0, "ABSENT")
    assert reader.call("near_misses") == [["revision"]]


def test_kvmd_killed_and_started_again(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner, reader = (start_worker(MODULE, kvmd.socket, name) for name in ("owner", "reader"))
    first, second = prompt(5, seed=1), prompt(5, seed=2)
    owner.call("publish", first, list(range(5)))
    assert reader.call("find", first) == (5, "COMPLETE")
    kvmd.kill()
    assert reader.call("fetch", first, list(range(5))) == (5, 0), "mapped memory needs no kvmd"
    assert owner.call("publish", second, list(range(5, 10)), flush=False) == 5
    kvmd.start()
    for _ in range(1000):
        if reader.call("find", second)[0] == 5:
            break
        time.sleep(0.01)
    assert reader.call("fetch", second, list(range(10, 15))) == (5, 0)
    assert reader.call("fetch", first, list(range(20, 25))) == (5, 0)
