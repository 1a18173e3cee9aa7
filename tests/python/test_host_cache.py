"""kvmd's host cache from Python: which blocks are offered, and which stay when their owner overwrites them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import kvclient
from kvclient import KeyChain, OffloadMode, errors
from kvclient.daemon import PrivateDaemon
from support.block_worker import BLOCK_BYTES, content, prompt, spec
from support.waiting import eventually


@pytest.fixture
def caching_kvmd() -> Iterator[PrivateDaemon]:
    with PrivateDaemon(["--host-cache", "8M", "--orphan-ttl-s", "0"]) as daemon:
        yield daemon


def pool(client: kvclient.Client, name: str, offload: OffloadMode) -> kvclient.Region:
    return client.allocate_region(
        client.declare_model(spec()), kvclient.Geometry.contiguous(16, BLOCK_BYTES), name=name, offload=offload
    )


def publish(client: kvclient.Client, region: kvclient.Region, seed: int) -> kvclient.BlockKeys:
    """Ten blocks, whose bytes follow from their keys, into blocks 0 to 9."""
    chain = KeyChain(client.declare_model(spec()))
    root, keys = chain.parent, chain.extend(prompt(10, seed))
    writes = region.begin_writes(range(10))
    for block, key in enumerate(keys):
        region.block(block)[:] = np.frombuffer(content(key), dtype=np.uint8)
    region.publish_run(keys, root, 0, writes)
    region.flush()
    return keys


def right_blocks(client: kvclient.Client, region: kvclient.Region, keys: kvclient.BlockKeys) -> int:
    match = client.find(keys)
    result = client.import_blocks(match, region, range(len(match))).wait(timeout_s=10)
    return sum(bytes(region.block(i)) == content(keys[i]) for i in range(result.valid))


def test_what_its_owner_overwrites_is_imported_from_the_host_cache(caching_kvmd: PrivateDaemon) -> None:
    with kvclient.Client(caching_kvmd.socket, name="owner") as owner:
        region = pool(owner, "owner", OffloadMode.AUTO)
        first = publish(owner, region, seed=1)
        eventually(lambda: owner.stats().blocks_offloaded == 10)
        publish(owner, region, seed=2)
        with kvclient.Client(caching_kvmd.socket, name="reader") as reader:
            destination = pool(reader, "reader", OffloadMode.NEVER)
            eventually(lambda: len(reader.find(first)) == 10)
            assert right_blocks(reader, destination, first) == 10
            assert reader.stats().blocks_from_host_cache == 10


def test_only_what_is_asked_for_is_offloaded(caching_kvmd: PrivateDaemon) -> None:
    with kvclient.Client(caching_kvmd.socket, name="owner") as client:
        asked, never = pool(client, "asked", OffloadMode.ASKED), pool(client, "never", OffloadMode.NEVER)
        keys = publish(client, asked, seed=1)
        publish(client, never, seed=2)
        assert asked.offload_before_reuse([0, 1, 2], timeout_s=10) == 3
        assert asked.offload([3]) == 1
        assert never.offload(range(10)) == 0
        assert never.offload_before_reuse(range(10), timeout_s=10) == 0
        eventually(lambda: client.stats().blocks_offloaded == 4)
        asked.retract(range(10))
        eventually(lambda: len(client.find(keys)) == 4)  # kvmd is told without an answer
        for call in (asked.offload, asked.offload_before_reuse):
            with pytest.raises(errors.InvalidArgumentError, match="block 16"):
                call([16])


def test_without_a_host_cache_nothing_is_offered(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="owner") as client:
        region = pool(client, "owner", OffloadMode.AUTO)
        publish(client, region, seed=1)
        assert region.offload(range(10)) == 0
        assert region.offload_before_reuse(range(10), timeout_s=10) == 0
