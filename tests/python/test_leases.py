"""Leases: blocks that kvmd keeps for a time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import kvclient
from kvclient import Geometry, KeyChain, errors
from kvclient.daemon import PrivateDaemon
from support.block_worker import spec
from support.waiting import eventually

BLOCKS, BLOCK_BYTES = 8, 4096
TOKENS = list(range(BLOCKS * 4))


@pytest.fixture
def caching_kvmd() -> Iterator[PrivateDaemon]:
    """One with a host cache, in which workers' blocks are copied by themselves."""
    with PrivateDaemon(("--host-cache", "1M", "--orphan-ttl-s", "0", "--max-lease-ttl-s", "60")) as daemon:
        yield daemon


def lease_all(client: kvclient.Client, keys: kvclient.BlockKeys) -> kvclient.Lease:
    """Hold all of them, once they have come to the host cache."""
    for _ in range(1000):
        match = client.find(keys)
        try:
            lease = client.acquire_lease(match, 30) if match else None
        except errors.UnsupportedError:
            lease = None
        if lease is None:
            time.sleep(0.01)
            continue
        if lease.blocks == len(keys):
            return lease
        lease.release()
        time.sleep(0.01)
    raise AssertionError("the blocks did not come to the host cache")


def test_blocks_are_held_and_let_go(caching_kvmd: PrivateDaemon) -> None:
    with kvclient.Client(caching_kvmd.socket, name="holder") as client:
        model = client.declare_model(spec())
        region = client.allocate_region(model, Geometry.contiguous(BLOCKS, BLOCK_BYTES), name="pool")
        chain = KeyChain(model)
        root, keys = chain.parent, chain.extend(TOKENS)
        with pytest.raises(errors.InvalidArgumentError, match="empty"):
            client.acquire_lease(client.find(keys), 10)
        region.publish_run(keys, root, 0, region.begin_writes(list(range(BLOCKS))))
        with lease_all(client, keys) as lease:
            assert lease.valid
            assert lease.blocks == BLOCKS
            assert lease.reason is None
            assert 0 < lease.left_s <= 30
            lease.renew(60)
            assert lease.left_s > 30
            with pytest.raises(errors.InvalidArgumentError, match="--max-lease-ttl-s"):
                lease.renew(61)
            # The cache's copies are what is left of them.
            region.begin_writes(list(range(BLOCKS)))
            eventually(lambda: len(client.find(keys)) == BLOCKS, tries=1000)
        assert not lease.valid
        assert lease.blocks == 0
        with pytest.raises(errors.CancelledError):
            lease.renew(10)
        with pytest.raises(errors.InvalidArgumentError, match="--max-lease-ttl-s"):
            client.acquire_lease(client.find(keys), 61)
        lease.release()
        region.unregister()


def test_what_a_living_worker_alone_has_is_not_held(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="worker") as client:
        model = client.declare_model(spec())
        with client.allocate_region(model, Geometry.contiguous(BLOCKS, BLOCK_BYTES), name="pool") as region:
            chain = KeyChain(model)
            root, keys = chain.parent, chain.extend(TOKENS)
            region.publish_run(keys, root, 0, region.begin_writes(list(range(BLOCKS))))
            eventually(lambda: len(client.find(keys)) == BLOCKS, tries=1000)
            with pytest.raises(errors.UnsupportedError, match="pool"):
                client.acquire_lease(client.find(keys), 10)


def test_a_lease_ends_with_kvmd(caching_kvmd: PrivateDaemon) -> None:
    with kvclient.Client(caching_kvmd.socket, name="holder") as client:
        model = client.declare_model(spec())
        with client.allocate_region(model, Geometry.contiguous(BLOCKS, BLOCK_BYTES), name="pool") as region:
            chain = KeyChain(model)
            root, keys = chain.parent, chain.extend(TOKENS)
            region.publish_run(keys, root, 0, region.begin_writes(list(range(BLOCKS))))
            lease = lease_all(client, keys)
            caching_kvmd.kill()
            eventually(lambda: not lease.valid, tries=1000)
            assert isinstance(lease.reason, errors.UnavailableError)
