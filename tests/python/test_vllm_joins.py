"""The vLLM connector asks kvmd-mesh for blocks of other nodes, and the scheduler's thread does not wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.vllm.joins import Joins
from kvclient.vllm.layout import read_layout
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.worker import WorkerSide
from support.mesh import MeshProcess
from support.paged_pool import Pool
from support.paged_step import Cached, Output, Request
from support.specs import small_spec
from support.waiting import eventually

SPEC = small_spec()
BLOCKS = 8
TOKENS = list(range(4 * BLOCKS + 1))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def joins(tmp_path: Path, clock: Clock) -> Joins:
    socket = tmp_path / "mesh.sock"
    socket.touch()
    return Joins(ConnectorOptions(socket="/s", mesh_socket=str(socket), mesh_wait_s=2.0), clock)


def test_a_request_waits_until_each_shard_has_been_asked_for(joins: Joins) -> None:
    keys = [kvclient.BlockKeys(), kvclient.BlockKeys()]
    assert joins.waits("r", keys, 3, "192.0.2.7")
    [join] = joins.take()
    assert (join.request_id, join.found, join.source, len(join.keys)) == ("r", 3, "192.0.2.7", 2)
    assert joins.waits("r", keys, 3)
    assert joins.take() == []
    joins.joined("r", 0)
    assert joins.waits("r", keys, 3)
    joins.joined("r", 0)
    assert not joins.waits("r", keys, 3)
    assert joins.take() == []


def test_a_request_waits_no_longer_than_the_option_says(joins: Joins, clock: Clock) -> None:
    assert joins.waits("r", [kvclient.BlockKeys()], 0)
    clock.now += 1.9
    assert joins.waits("r", [kvclient.BlockKeys()], 0)
    clock.now += 0.2
    assert not joins.waits("r", [kvclient.BlockKeys()], 0)
    joins.joined("r", 0)  # too late
    assert not joins.waits("r", [kvclient.BlockKeys()], 0)


def test_a_mesh_that_does_not_answer_is_left_alone_for_a_while(joins: Joins, clock: Clock) -> None:
    def late(name: str) -> bool:
        waited = joins.waits(name, [kvclient.BlockKeys()], 0)
        clock.now += 3
        joins.waits(name, [kvclient.BlockKeys()], 0)
        return waited

    assert [late(str(index)) for index in range(6)] == [True] * 4 + [False] * 2
    clock.now += 60
    assert late("again")
    assert not late("still silent")


def test_a_mesh_that_brings_blocks_late_is_asked_again(joins: Joins, clock: Clock) -> None:
    for name in map(str, range(6)):
        assert joins.waits(name, [kvclient.BlockKeys()], 0)
        clock.now += 3
        assert not joins.waits(name, [kvclient.BlockKeys()], 0)
        joins.joined(name, 5)


def test_a_request_that_has_ended_is_not_asked_for(joins: Joins) -> None:
    joins.waits("r", [kvclient.BlockKeys()], 0)
    joins.forget("r")
    assert joins.take() == []


def test_only_so_many_requests_wait_at_once(joins: Joins) -> None:
    waiting = [joins.waits(str(index), [kvclient.BlockKeys()], 0) for index in range(20)]
    assert waiting == [True] * 16 + [False] * 4


@pytest.mark.parametrize("wait_s", [0.0, 1.0])
def test_without_a_mesh_or_time_for_it_no_request_waits(tmp_path: Path, wait_s: float) -> None:
    socket = tmp_path / "mesh.sock"
    if not wait_s:
        socket.touch()
    joins = Joins(ConnectorOptions(socket="/s", mesh_socket=str(socket), mesh_wait_s=wait_s))
    assert not joins.waits("r", [kvclient.BlockKeys()], 0)


class Node:
    """A scheduler's and a worker's side on one kvmd, with a step at a time."""

    def __init__(self, kvmd: PrivateDaemon, mesh: str, min_prefix_tokens: int) -> None:
        options = ConnectorOptions(
            socket=kvmd.socket,
            min_prefix_tokens=min_prefix_tokens,
            host_cache_bytes=1 << 16,
            mesh_socket=mesh,
            mesh_wait_s=30.0,
        )
        self.client = kvclient.Client(kvmd.socket, name="engine")
        self.cache = torch.zeros(BLOCKS + 1, 64)
        self.worker = WorkerSide(options)
        layout = read_layout({"l.0": self.cache}, BLOCKS + 1)
        assert self.worker.attach(self.client, SPEC, kvclient.Shard(), layout, "engine")
        self.scheduler = SchedulerSide(options)
        self.scheduler.attach(self.client, SPEC, [kvclient.Shard()], include_own=True)
        self.scheduler.bind_pool(Pool(BLOCKS + 1))

    def step(self) -> None:
        """A step without any request in it, as vLLM makes while requests wait."""
        self.worker.before_step(self.scheduler.plan(Output([], Cached(), {}, set(), set())))
        report = self.worker.take_report()
        self.scheduler.joined(report.joined if report is not None else ())

    def close(self) -> None:
        self.worker.close()
        self.client.close()


@pytest.fixture
def nodes() -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(kvmd: PrivateDaemon, mesh: str = "", min_prefix_tokens: int = 4) -> Node:
        made.append(Node(kvmd, mesh, min_prefix_tokens))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_blocks_of_another_node_are_found_while_the_scheduler_goes_on(
    nodes: Callable[..., Node], start_mesh: Callable[..., MeshProcess]
) -> None:
    with PrivateDaemon() as kvmd_a, PrivateDaemon() as kvmd_b:
        publisher = kvclient.Client(kvmd_a.socket, name="publisher")
        pool = publisher.allocate_region(
            publisher.declare_model(SPEC), kvclient.Geometry.contiguous(BLOCKS, 256), name="pool"
        )
        chain = kvclient.KeyChain(SPEC)
        root = chain.parent
        pool.publish_run(chain.extend(TOKENS[:-1]), root, 0, pool.begin_writes(list(range(BLOCKS))))
        mesh_a = start_mesh(kvmd_a, "a")
        mesh_b = start_mesh(kvmd_b, "b", (mesh_a.as_peer,))
        node = nodes(kvmd_b, mesh_b.socket)
        names = iter(range(10_000))

        def found() -> bool:
            """Another request each time: the nodes may not know of each other's blocks yet."""
            request: Any = Request(f"r{next(names)}", TOKENS, 1)
            assert node.scheduler.matched_tokens(request, 0) == (None, False)

            def asked() -> bool:
                node.step()
                return node.scheduler.matched_tokens(request, 0)[0] is not None

            eventually(asked)
            tokens, later = node.scheduler.matched_tokens(request, 0)
            node.scheduler.finished(request)
            return (tokens, later) == (4 * BLOCKS, True)

        eventually(found)
        pool.close()
        publisher.close()


def test_a_request_whose_prefix_is_here_does_not_wait(kvmd: PrivateDaemon, tmp_path: Path, nodes: Any) -> None:
    socket = tmp_path / "mesh.sock"
    socket.touch()
    node = nodes(kvmd, str(socket), min_prefix_tokens=8)
    peer = kvclient.Client(kvmd.socket, name="peer")
    region = peer.allocate_region(peer.declare_model(SPEC), kvclient.Geometry.contiguous(BLOCKS, 256), name="pool")
    chain = kvclient.KeyChain(SPEC)
    root = chain.parent
    keys = chain.extend(TOKENS[:-1])
    region.publish_run(keys, root, 0, region.begin_writes(list(range(BLOCKS))))
    eventually(lambda: len(node.client.find(keys)) == BLOCKS)
    assert node.scheduler.matched_tokens(Request("r", TOKENS, 1), 0) == (4 * BLOCKS, True)
    # One block more is there, though nothing is left of it that would be worth the wait
    short: Any = Request("s", [*range(900, 904), 1], 1)
    assert node.scheduler.matched_tokens(short, 0) == (0, False)
    peer.close()
