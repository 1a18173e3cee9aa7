"""The vLLM connector tells kvmd-mesh which tokens its blocks have, and tells a new kvmd-mesh again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.errors import UnavailableError
from kvclient.vllm.descriptions import Description, Descriptions
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.scheduler import SchedulerSide
from support.described import EVENTS
from support.mesh import MeshProcess
from support.paged_pool import Pool
from support.paged_step import Output, Request
from support.specs import small_spec
from support.waiting import eventually

SPEC = small_spec()
TOKENS = list(range(33))


class FakeMesh:
    """A client whose kvmd-mesh remembers what it was told. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.told: dict[kvclient.BlockKey, list[int]] = {}
        self.process, self.wanted, self.listens, self.room = 1, True, True, 10**9
        self.calls = 0

    def restart(self) -> None:
        with self.lock:
            self.told, self.process = {}, self.process + 1

    def describe_blocks(self, spec: Any, keys: Any, tokens: Any, **_: Any) -> Any:
        with self.lock:
            self.calls += 1
            if not self.listens:
                raise UnavailableError("no kvmd-mesh")
            taken = min(len(keys), self.room) if self.wanted else 0
            for index in range(taken):
                size = spec.block_tokens
                self.told[keys[index]] = list(tokens[index * size : (index + 1) * size])
            return SimpleNamespace(wanted=self.wanted, taken=taken, process=self.process)

    def knows(self, description: Description) -> bool:
        with self.lock:
            return all(key in self.told for key in description.keys)


def prefix(seed: int, blocks: int = 8) -> Description:
    tokens = [seed * 1000 + i for i in range(blocks * SPEC.block_tokens)]
    return Description(SPEC, kvclient.KeyChain(SPEC).extend(tokens), tokens)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Descriptions]]:
    socket = tmp_path / "mesh.sock"
    socket.touch()
    made: list[Descriptions] = []

    def start(**options: Any) -> Descriptions:
        made.append(Descriptions(ConnectorOptions(socket="/s", mesh_socket=str(socket)), **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_what_is_told_arrives_with_its_tokens(make: Callable[..., Descriptions]) -> None:
    mesh: Any = FakeMesh()
    descriptions = make()
    assert descriptions.on
    told = prefix(1)
    descriptions.tell(mesh, told)
    eventually(lambda: mesh.knows(told), tries=6000)
    assert mesh.told[told.keys[2]] == told.tokens[8:12]


def test_a_new_process_is_told_everything_again(make: Callable[..., Descriptions]) -> None:
    mesh: Any = FakeMesh()
    descriptions = make(look_s=0.05)
    all_of_them = [prefix(seed) for seed in range(10)]
    for each in all_of_them:
        descriptions.tell(mesh, each)
    eventually(lambda: all(map(mesh.knows, all_of_them)), tries=6000)
    mesh.restart()
    eventually(lambda: all(map(mesh.knows, all_of_them)), tries=6000)
    # Also one that was away meanwhile.
    mesh.listens = False
    calls = mesh.calls
    eventually(lambda: mesh.calls > calls, tries=6000)
    mesh.restart()
    mesh.listens = True
    eventually(lambda: all(map(mesh.knows, all_of_them)), tries=6000)


def test_what_was_not_taken_is_told_again(make: Callable[..., Descriptions]) -> None:
    mesh: Any = FakeMesh()
    mesh.room = 3
    descriptions = make(look_s=0.05)
    told = prefix(1)
    descriptions.tell(mesh, told)
    eventually(lambda: mesh.calls > 2, tries=6000)
    assert not mesh.knows(told)
    mesh.room = 100
    eventually(lambda: mesh.knows(told), tries=6000)


def test_a_mesh_without_events_is_left_alone_for_a_while(make: Callable[..., Descriptions]) -> None:
    mesh: Any = FakeMesh()
    mesh.wanted = False
    clock = SimpleNamespace(now=100.0)
    descriptions = make(look_s=5.0, now=lambda: clock.now)
    descriptions.tell(mesh, prefix(1))
    eventually(lambda: not descriptions.on, tries=6000)
    clock.now += 5.1
    assert descriptions.on


def test_the_prefixes_told_longest_ago_are_not_told_again(make: Callable[..., Descriptions]) -> None:
    mesh: Any = FakeMesh()
    descriptions = make(look_s=0.05, most_blocks=20)
    first, second, third = (prefix(seed) for seed in (1, 2, 3))
    for each in (first, second, third):
        descriptions.tell(mesh, each)
        eventually(lambda each=each: mesh.knows(each), tries=6000)  # type: ignore[misc]
    mesh.restart()
    eventually(lambda: mesh.knows(second) and mesh.knows(third), tries=6000)
    assert not mesh.knows(first)


def test_without_a_socket_nothing_is_told(tmp_path: Path) -> None:
    assert not Descriptions(ConnectorOptions(socket="/s", mesh_socket=str(tmp_path / "none.sock"))).on


class Told:
    """A scheduler's side whose descriptions are kept."""

    def __init__(self, kvmd: PrivateDaemon, mesh: str) -> None:
        options = ConnectorOptions(socket=kvmd.socket, min_prefix_tokens=4, mesh_socket=mesh, mesh_wait_s=0.0)
        self.client = kvclient.Client(kvmd.socket, name="engine")
        self.scheduler = SchedulerSide(options)
        self.scheduler.attach(self.client, SPEC, [kvclient.Shard()])
        self.scheduler.bind_pool(Pool(32))

    def close(self) -> None:
        self.scheduler.close()
        self.client.close()


@pytest.fixture
def told(kvmd: PrivateDaemon) -> Iterator[Callable[[str], Told]]:
    made: list[Told] = []

    def make(mesh: str) -> Told:
        made.append(Told(kvmd, mesh))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_prompts_and_then_what_was_computed_are_told(
    kvmd: PrivateDaemon, start_mesh: Callable[..., MeshProcess], told: Callable[[str], Told]
) -> None:
    mesh = start_mesh(kvmd, "a", options=EVENTS)
    side = told(mesh.socket)
    request: Any = Request("r", TOKENS, 40)
    side.scheduler.matched_tokens(request, 0)
    side.scheduler.plan(Output())
    described = lambda: mesh.status()["events"]["described_blocks"]  # noqa: E731
    # A pass of the events follows a scan: there must be a model.
    region = side.client.allocate_region(
        side.client.declare_model(SPEC), kvclient.Geometry.contiguous(32, 256), name="pool"
    )
    eventually(lambda: described() == 8, tries=6000)
    # It has computed 15 blocks when it ends.
    request.all_token_ids += list(range(100, 130))
    request.num_computed_tokens = 61
    side.scheduler.finished(request)
    eventually(lambda: described() == 15, tries=6000)
    # And they are those of the keys that the engine publishes.
    chain = kvclient.KeyChain(SPEC)
    root = chain.parent
    region.publish_run(chain.extend(request.all_token_ids[:60]), root, 0, region.begin_writes(list(range(15))))
    eventually(lambda: mesh.status()["events"]["blocks"] == 15, tries=6000)


def test_a_request_whose_blocks_depend_on_more_than_tokens_is_not_told(
    tmp_path: Path, told: Callable[[str], Told]
) -> None:
    socket = tmp_path / "mesh.sock"
    socket.touch()
    side = told(str(socket))
    kept: list[Description] = []
    side.scheduler._descriptions.tell = lambda _, description: kept.append(description)  # type: ignore[method-assign]
    plain: Any = Request("plain", TOKENS, 1)
    side.scheduler.matched_tokens(plain, 0)
    side.scheduler.plan(Output())
    assert [len(each.keys) for each in kept] == [8]
    salted: Any = Request("salted", TOKENS, 1)
    salted.cache_salt = "salt"
    side.scheduler.matched_tokens(salted, 0)
    side.scheduler.plan(Output())
    salted.num_computed_tokens = 32
    side.scheduler.finished(salted)
    assert len(kept) == 1
