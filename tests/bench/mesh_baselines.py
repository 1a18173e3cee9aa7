#!/usr/bin/env python3
"""What others take to bring the same blocks from one node to another: Redis, NIXL over UCX, Mooncake's store.

    mesh_baselines.py source NAME ADDRESS OPTIONS     holds the blocks until its input ends, and says "ready"
    mesh_baselines.py fetch NAME ADDRESS OPTIONS      reads all of them into memory of its own, some rounds; a line

scripts/mesh_bench.sh --baselines runs both sides, in the same network namespaces and turns as kvmd-mesh. NAME: redis
(needs redis-server), nixl (the package nixl[cu12] from PyPI) or mooncake (mooncake-transfer-engine-non-cuda). Each
fetches all blocks of a round with one call or one pipeline, into memory that is registered once where there is
something to register; the last round's bytes are compared. None of them checks a checksum or an owner.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PORT = 7620


def key(block: int) -> str:
    return f"block-{block:06}"


def content(block: int, size: int) -> bytes:
    """Different in each block."""
    return (block.to_bytes(4, "little") * (size // 4 + 1))[:size]


class Memory:
    """All blocks of a side, one behind the other, on pages that have been touched."""

    def __init__(self, options: argparse.Namespace, filled: bool) -> None:
        self.size, self.count = options.block_bytes, options.blocks
        self.bytes = bytearray(self.size * self.count)
        for block in range(self.count if filled else 0):
            self.bytes[block * self.size : (block + 1) * self.size] = content(block, self.size)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))

    def address(self, block: int) -> int:
        return self._base + block * self.size

    def check(self) -> None:
        for block in range(self.count):
            found = self.bytes[block * self.size : (block + 1) * self.size]
            assert found == content(block, self.size), f"block {block} has other bytes"


def eventually(answers: Callable[[], bool]) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            if answers():
                return
        time.sleep(0.05)
    raise SystemExit("the source does not answer")


def connect(address: str, port: int) -> socket.socket:
    connection = socket.create_connection((address, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def listening(address: str, port: int) -> bool:
    connect(address, port).close()
    return True


@contextlib.contextmanager
def program(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def redis_source(address: str, options: argparse.Namespace) -> Iterator[None]:
    server = shutil.which("redis-server") or sys.exit("no redis-server")
    with program(server, "--bind", address, "--port", str(PORT), "--save", "", "--protected-mode", "no"):
        eventually(lambda: listening(address, PORT))
        with connect(address, PORT) as peer:
            for block in range(options.blocks):
                name, value = key(block).encode(), content(block, options.block_bytes)
                peer.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(name), name, len(value), value))
                assert peer.recv(5, socket.MSG_WAITALL) == b"+OK\r\n"
        yield


@contextlib.contextmanager
def redis_fetch(address: str, into: Memory) -> Iterator[Callable[[], None]]:
    """GETs in one pipeline, answers read straight to where they belong."""
    names = [key(block).encode() for block in range(into.count)]
    pipeline = b"".join(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name) for name in names)
    head = b"$%d\r\n" % into.size
    view = memoryview(into.bytes)
    with connect(address, PORT) as peer:

        def fetch() -> None:
            peer.sendall(pipeline)
            for block in range(into.count):
                assert peer.recv(len(head), socket.MSG_WAITALL) == head
                rest = view[block * into.size : (block + 1) * into.size]
                while rest:
                    rest = rest[peer.recv_into(rest) :]
                assert peer.recv(2, socket.MSG_WAITALL) == b"\r\n"

        yield fetch


def nixl_agent(name: str, memory: Memory) -> tuple[Any, Any]:
    """An agent that knows the memory, and its blocks as descriptors."""
    import nixl._api as api

    agent = api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(memory.address(0), memory.size * memory.count, 0, "")], "DRAM")
    blocks = [(memory.address(block), memory.size, 0) for block in range(memory.count)]
    return agent, agent.get_xfer_descs(blocks, "DRAM")


@contextlib.contextmanager
def nixl_source(address: str, options: argparse.Namespace) -> Iterator[None]:
    memory = Memory(options, filled=True)
    agent, blocks = nixl_agent("source", memory)
    known, described = agent.get_agent_metadata(), agent.get_serialized_descs(blocks)

    def hand_out() -> None:
        with socket.create_server((address, PORT)) as server:
            while True:
                with server.accept()[0] as peer:
                    for part in (known, described):
                        peer.sendall(len(part).to_bytes(8, "little") + part)

    threading.Thread(target=hand_out, daemon=True).start()
    yield


@contextlib.contextmanager
def nixl_fetch(address: str, into: Memory) -> Iterator[Callable[[], None]]:
    agent, blocks = nixl_agent("fetch", into)
    with connect(address, PORT) as peer:
        known, described = (
            peer.recv(int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "little"), socket.MSG_WAITALL) for _ in range(2)
        )
    source = agent.add_remote_agent(known)
    transfer = agent.initialize_xfer("READ", blocks, agent.deserialize_descs(described), source)

    def fetch() -> None:
        state = agent.transfer(transfer)
        while state == "PROC":
            state = agent.check_xfer_state(transfer)
        assert state == "DONE", state

    yield fetch


def mooncake_store(address: str, master: str, segment: int, memory: Memory) -> Any:
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    metadata = f"http://{master}:{PORT + 1}/metadata"
    given = store.setup(address, metadata, segment, 16 << 20, "tcp", "", f"{master}:{PORT}")
    assert given == 0, f"setup: {given}"
    assert store.register_buffer(memory.address(0), memory.size * memory.count) == 0
    return store


def mooncake_lists(memory: Memory) -> tuple[list[str], list[int], list[int]]:
    blocks = range(memory.count)
    return [key(block) for block in blocks], [memory.address(block) for block in blocks], [memory.size] * memory.count


@contextlib.contextmanager
def mooncake_source(address: str, options: argparse.Namespace) -> Iterator[None]:
    master = str(Path(sys.executable).with_name("mooncake_master"))
    serving = ["--rpc_port", str(PORT), "--enable_http_metadata_server=true", "--default_kv_lease_ttl=600000"]
    serving += ["--http_metadata_server_port", str(PORT + 1), "--metrics_port", str(PORT + 2)]
    with program(master, *serving):
        eventually(lambda: listening(address, PORT) and listening(address, PORT + 1))
        memory = Memory(options, filled=True)
        store = mooncake_store(address, address, 2 * memory.size * memory.count + (64 << 20), memory)
        assert not any(store.batch_put_from(*mooncake_lists(memory)))
        yield
        store.close()


@contextlib.contextmanager
def mooncake_fetch(address: str, into: Memory, own: str) -> Iterator[Callable[[], None]]:
    store = mooncake_store(own, address, 0, into)
    keys, addresses, sizes = mooncake_lists(into)

    def fetch() -> None:
        got = store.batch_get_into(keys, addresses, sizes)
        assert got == sizes, got[:4]

    yield fetch
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("source", "fetch"))
    parser.add_argument("name", choices=("redis", "nixl", "mooncake"))
    parser.add_argument("address", help="the source's")
    parser.add_argument("--own-address", default="127.0.0.1", help="the fetching side's")
    parser.add_argument("--block-bytes", type=int, default=2 << 20)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if options.side == "source":
        source = {"redis": redis_source, "nixl": nixl_source, "mooncake": mooncake_source}[options.name]
        with source(options.address, options):
            print("ready", flush=True)
            sys.stdin.read()
        os._exit(0)  # some of the libraries' threads don't end
    into = Memory(options, filled=False)
    fetchers = {
        "redis": lambda: redis_fetch(options.address, into),
        "nixl": lambda: nixl_fetch(options.address, into),
        "mooncake": lambda: mooncake_fetch(options.address, into, options.own_address),
    }
    with fetchers[options.name]() as fetch:
        fetch()  # connects
        took = []
        for _ in range(options.rounds):
            into.bytes[:] = bytes(len(into.bytes))
            began = time.perf_counter()
            fetch()
            took.append(time.perf_counter() - began)
        into.check()
    rate = into.size * into.count / statistics.median(took) / 1e9
    print(f"{options.name}: {rate:.2f} GB/s, median of {options.rounds} rounds", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
