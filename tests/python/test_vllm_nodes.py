"""Two nodes, each with a kvmd, a kvmd-mesh and a real vLLM engine: one computes a prompt, the other one fetches it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec

import pytest

from kvclient.daemon import PrivateDaemon
from support.forked_worker import ForkedWorker
from support.mesh import MeshProcess
from support.vllm_engines import ENGINE, prompt
from support.vllm_worker import BLOCK
from support.waiting import eventually
from support.worker import Worker

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)

LENGTH = 203
BLOCKS = LENGTH // BLOCK
TRIES = 6000  # a minute


@dataclass
class Node:
    kvmd: PrivateDaemon
    mesh: MeshProcess
    engine: Worker


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[tuple[PrivateDaemon, Worker], tuple[PrivateDaemon, Worker]]]:
    """A kvmd and an engine for each node."""
    with ExitStack() as ending:
        made = []
        for _ in range(2):
            kvmd = ending.enter_context(PrivateDaemon())
            options = {"mesh_socket": MeshProcess.socket_beside(kvmd), "mesh_wait_s": 60.0}
            engine = ForkedWorker(ENGINE, kvmd.socket, 100, options)
            ending.callback(engine.stop)
            made.append((kvmd, engine))
        yield made[0], made[1]


@pytest.fixture
def nodes(
    engines: tuple[tuple[PrivateDaemon, Worker], tuple[PrivateDaemon, Worker]], start_mesh: Callable[..., MeshProcess]
) -> tuple[Node, Node]:
    """The second one's kvmd-mesh knows the first one's."""
    (kvmd_a, engine_a), (kvmd_b, engine_b) = engines
    mesh_a = start_mesh(kvmd_a, "a")
    mesh_b = start_mesh(kvmd_b, "b", (mesh_a.as_peer,))
    return Node(kvmd_a, mesh_a, engine_a), Node(kvmd_b, mesh_b, engine_b)


def computed_at(node: Node, reader: Node, ids: list[int]) -> list[int]:
    """The answer of a node that computes all of a prompt, whose blocks the reader then knows of."""
    known = sum(peer["keys"] for peer in reader.mesh.status()["peers"])
    [(answer, cached)] = node.engine.call("generate", [ids], 24)
    assert cached == 0
    node.engine.call("idle_step")
    eventually(lambda: sum(peer["keys"] for peer in reader.mesh.status()["peers"]) >= known + BLOCKS, TRIES)
    return list(answer)


def test_an_engine_starts_from_what_another_nodes_engine_computed(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    ids = prompt(LENGTH)
    expected = computed_at(a, b, ids)
    before = b.engine.call("stats")["imported"]
    assert b.engine.call("generate", [ids], 24) == [(expected, BLOCKS * BLOCK)]
    assert b.engine.call("stats")["imported"] - before == BLOCKS
    assert b.engine.call("kv_digests", ids)[:BLOCKS] == a.engine.call("kv_digests", ids)[:BLOCKS]
    assert b.mesh.status()["joined_blocks"] == BLOCKS
    assert a.mesh.status()["served_blocks"] == BLOCKS


def test_without_a_mesh_the_second_engine_computes_the_same(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    ids = prompt(LENGTH, seed=1)
    expected = computed_at(a, b, ids)
    b.mesh.stop()
    assert b.engine.call("generate", [ids], 24) == [(expected, 0)]


def test_a_peer_that_dies_while_it_is_asked_changes_no_answer(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    ids = prompt(LENGTH, seed=2)
    expected = computed_at(a, b, ids)
    a.mesh.send_signal(signal.SIGSTOP)
    answer = b.engine.start("generate", [ids], 24)
    eventually(lambda: b.mesh.status()["joins"] == 1, TRIES)
    a.mesh.stop()
    assert answer() == [(expected, 0)]
    assert b.mesh.status()["joined_blocks"] == 0
