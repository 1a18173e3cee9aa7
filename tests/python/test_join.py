"""Joins: blocks of another node's workers, by way of kvmd-mesh."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest

import kvclient
from kvclient import Geometry, KeyChain, errors
from kvclient.daemon import PrivateDaemon
from support.block_worker import spec
from support.mesh import MeshProcess
from support.waiting import eventually

BLOCKS, BLOCK_BYTES = 8, 4096
TOKENS = list(range(BLOCKS * 4))


def node(
    kvmd: PrivateDaemon, name: str
) -> tuple[kvclient.Client, kvclient.Region, kvclient.BlockKey, kvclient.BlockKeys]:
    client = kvclient.Client(kvmd.socket, name=name)
    model = client.declare_model(spec())
    region = client.allocate_region(model, Geometry.contiguous(BLOCKS, BLOCK_BYTES), name="pool")
    chain = KeyChain(model)
    root = chain.parent
    return client, region, root, chain.extend(TOKENS)


def test_without_a_mesh_a_join_is_what_find_finds(kvmd: PrivateDaemon, tmp_path: pathlib.Path) -> None:
    client, region, root, keys = node(kvmd, "alone")
    with client:
        region.publish_run(keys[:3], root, 0, region.begin_writes([0, 1, 2]))
        eventually(lambda: len(client.find(keys)) == 3)
        outcome = client.join_cache(keys, region, mesh_socket=str(tmp_path / "none.sock"))
        assert (outcome.blocks, outcome.fetched) == (3, 0)
        assert "no kvmd-mesh" in outcome.reason
        assert "blocks=3" in repr(outcome)


def test_a_join_checks_its_arguments(kvmd: PrivateDaemon) -> None:
    client, region, _, keys = node(kvmd, "wrong")
    with client, pytest.raises(errors.InvalidArgumentError, match="timeout_s"):
        client.join_cache(keys, region, timeout_s=-1)
    with pytest.raises(errors.CancelledError):
        client.join_cache(keys, region)


def test_blocks_of_another_node_are_found_after_a_join(start_mesh: Callable[..., MeshProcess]) -> None:
    with PrivateDaemon() as kvmd_a, PrivateDaemon() as kvmd_b:
        publisher, pool, root, keys = node(kvmd_a, "publisher")
        joiner, destination, _, _ = node(kvmd_b, "joiner")
        with publisher, joiner:
            pool.publish_run(keys, root, 0, pool.begin_writes(list(range(BLOCKS))))
            mesh_a = start_mesh(kvmd_a, "a")
            mesh_b = start_mesh(kvmd_b, "b", (mesh_a.as_peer,))
            fetched = 0

            def joined() -> bool:
                nonlocal fetched
                outcome = joiner.join_cache(keys, destination, timeout_s=5, source_hint="a", mesh_socket=mesh_b.socket)
                fetched += outcome.fetched
                return outcome.blocks == BLOCKS

            eventually(joined)
            assert fetched == BLOCKS
            match = joiner.find(keys)
            assert joiner.import_blocks(match, destination, list(range(BLOCKS))).wait().valid == BLOCKS
