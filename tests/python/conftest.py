"""Shared by the Python tests: a kvmd of their own, worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvclient.daemon import PrivateDaemon
from support.mesh import MeshProcess
from support.worker import Worker


@pytest.fixture
def kvmd() -> Iterator[PrivateDaemon]:
    with PrivateDaemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    """A kvmd of all tests of a module, for what takes long to start."""
    with PrivateDaemon() as started:
        yield started


@pytest.fixture
def start_worker() -> Iterator[Callable[..., Worker]]:
    """Starts processes that run functions of a module in support/; ended with the test."""
    workers: list[Worker] = []

    def start(module: str, *arguments: object) -> Worker:
        workers.append(Worker(module, *arguments))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


@pytest.fixture
def start_mesh() -> Iterator[Callable[..., MeshProcess]]:
    """Starts a kvmd-mesh beside a kvmd; ended with the test."""
    started: list[MeshProcess] = []

    def start(
        kvmd: PrivateDaemon, node: str, peers: tuple[str, ...] = (), options: tuple[str, ...] = ()
    ) -> MeshProcess:
        started.append(MeshProcess(kvmd, node, peers, options))
        return started[-1]

    yield start
    for process in started:
        process.stop()
