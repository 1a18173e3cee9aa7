"""Dynamo's KV indexer follows the events of kvmd-mesh: which node has how much of a prompt."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import pytest

from kvclient.daemon import PrivateDaemon
from support.described import BLOCK, EVENTS, DescribedWorker
from support.dynamo import DynamoIndexer
from support.mesh import MeshProcess
from support.waiting import eventually

PROMPT = [1000 + i for i in range(16 * BLOCK)]
OTHER = PROMPT[: 4 * BLOCK] + [7000 + i for i in range(4 * BLOCK)]


@pytest.fixture
def indexer(tmp_path: pathlib.Path) -> Iterator[DynamoIndexer]:
    started = DynamoIndexer(tmp_path / "indexer.log")
    yield started
    started.stop()


@pytest.fixture
def worker(kvmd: PrivateDaemon) -> Iterator[DescribedWorker]:
    with_tokens = DescribedWorker(kvmd)
    yield with_tokens
    with_tokens.close()


def test_it_finds_what_a_node_has_of_each_prompt(
    kvmd: PrivateDaemon, start_mesh: Callable[..., MeshProcess], indexer: DynamoIndexer, worker: DescribedWorker
) -> None:
    mesh = start_mesh(kvmd, "a", options=EVENTS)
    indexer.register(1, mesh.status()["events"], "m", BLOCK)
    worker.publish(PROMPT)
    assert worker.describe(mesh, PROMPT).taken == 16
    eventually(lambda: indexer.matched("m", PROMPT) == {1: 16 * BLOCK}, tries=6000)
    assert indexer.matched("m", PROMPT[: 5 * BLOCK + 1]) == {1: 5 * BLOCK}
    assert indexer.matched("m", OTHER) == {1: 4 * BLOCK}
    assert indexer.matched("m", PROMPT[1:]) == {}
    worker.publish(OTHER, 32)
    worker.describe(mesh, OTHER)
    eventually(lambda: indexer.matched("m", OTHER) == {1: 8 * BLOCK}, tries=6000)
    worker.withdraw(range(10, 16))
    eventually(lambda: indexer.matched("m", PROMPT) == {1: 10 * BLOCK}, tries=6000)
    assert indexer.matched("m", OTHER) == {1: 8 * BLOCK}
    # A hole hides what is behind it, and it is back with the hole's block.
    worker.withdraw([2, 34])  # both replicas
    eventually(lambda: indexer.matched("m", PROMPT) == {1: 2 * BLOCK}, tries=6000)
    assert indexer.matched("m", OTHER) == {1: 2 * BLOCK}
    worker.publish(PROMPT)
    eventually(lambda: indexer.matched("m", PROMPT) == {1: 16 * BLOCK}, tries=6000)


def test_one_that_comes_late_learns_of_everything_though_nothing_changes(
    kvmd: PrivateDaemon, start_mesh: Callable[..., MeshProcess], indexer: DynamoIndexer, worker: DescribedWorker
) -> None:
    mesh = start_mesh(kvmd, "a", options=EVENTS)
    worker.publish(PROMPT)
    worker.describe(mesh, PROMPT)
    eventually(lambda: mesh.status()["events"]["blocks"] == 16, tries=6000)
    indexer.register(1, mesh.status()["events"], "m", BLOCK)
    eventually(lambda: indexer.matched("m", PROMPT) == {1: 16 * BLOCK}, tries=6000)


def test_after_a_restart_of_kvmd_mesh_it_knows_what_the_new_one_was_told(
    kvmd: PrivateDaemon, start_mesh: Callable[..., MeshProcess], indexer: DynamoIndexer, worker: DescribedWorker
) -> None:
    mesh = start_mesh(kvmd, "a", options=EVENTS)
    events = mesh.status()["events"]
    indexer.register(1, events, "m", BLOCK)
    worker.publish(PROMPT)
    worker.publish(OTHER, 32)
    before = worker.describe(mesh, PROMPT)
    worker.describe(mesh, OTHER)
    eventually(lambda: indexer.matched("m", OTHER) == {1: 8 * BLOCK}, tries=6000)
    mesh.stop()
    same = ("--events", events["endpoint"], "--events-replay", events["replay_endpoint"])
    mesh = start_mesh(kvmd, "a", options=same)
    eventually(lambda: indexer.matched("m", OTHER) == {}, tries=6000)
    after = worker.describe(mesh, PROMPT)
    assert after.process != before.process
    eventually(lambda: indexer.matched("m", PROMPT) == {1: 16 * BLOCK}, tries=6000)
    assert indexer.matched("m", OTHER) == {1: 4 * BLOCK}


def test_of_two_nodes_it_knows_which_has_more(start_mesh: Callable[..., MeshProcess], indexer: DynamoIndexer) -> None:
    with PrivateDaemon() as kvmd_a, PrivateDaemon() as kvmd_b:
        workers = []
        for instance, kvmd, tokens in ((1, kvmd_a, PROMPT), (2, kvmd_b, PROMPT[: 6 * BLOCK])):
            mesh = start_mesh(kvmd, f"node{instance}", options=EVENTS)
            indexer.register(instance, mesh.status()["events"], "m", BLOCK)
            workers.append(DescribedWorker(kvmd))
            workers[-1].publish(tokens)
            workers[-1].describe(mesh, tokens)
        eventually(lambda: indexer.matched("m", PROMPT) == {1: 16 * BLOCK, 2: 6 * BLOCK}, tries=6000)
        for worker in workers:
            worker.close()
