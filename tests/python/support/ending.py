"""A process that ends in one of several ways: python -m support.ending SOCKET CASE. Run by test_process_end.py."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

import kvclient
from support.block_worker import BLOCK_BYTES, BLOCK_TOKENS, prompt, spec


class Process:
    """A client with a region and published blocks, and another client that can import them."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.name = f"ending-{os.getpid()}"
        self.client, self.model, self.region = self._region(self.name)
        self.other, _, self.destination = self._region(self.name + "-other")
        chain = kvclient.KeyChain(self.model)
        self.root = chain.parent
        self.keys = chain.extend(prompt(16))
        self.publish()
        self.region.flush(30.0)
        self.many = kvclient.KeyChain(self.model).extend(list(range(4000 * BLOCK_TOKENS)))

    def _region(self, name: str) -> tuple[kvclient.Client, kvclient.Model, kvclient.Region]:
        client = kvclient.Client(self.socket, name=name, timeout_s=30.0)
        model = client.declare_model(spec(), timeout_s=30.0)
        geometry = kvclient.Geometry.contiguous(64, BLOCK_BYTES)
        return client, model, client.allocate_region(model, geometry, name=name, timeout_s=30.0)

    def publish(self) -> None:
        self.region.publish_run(self.keys, self.root, 0, self.region.begin_writes(list(range(16))))

    # What a daemon thread may be at when the interpreter ends. Each gives the GIL up and wants it
    # back.

    def find(self) -> None:
        self.client.find(self.many)

    def declare(self) -> None:
        self.client.declare_model(spec(), timeout_s=30.0)

    def flush(self) -> None:
        self.publish()
        self.region.flush(30.0)

    def import_and_wait(self) -> None:
        match = self.other.find(self.keys)
        self.other.import_blocks(match, self.destination, list(range(len(match)))).wait(30.0)

    def allocate_and_drop(self) -> None:
        # Drops a region, with its memory, in the thread.
        geometry = kvclient.Geometry.contiguous(4, BLOCK_BYTES)
        self.client.allocate_region(self.model, geometry, name=self.name + "-more", timeout_s=30.0)

    def view_and_drop(self) -> None:
        view = self.region.segment()
        view[:10] = 1
        del view

    def read(self) -> None:
        self.region.read_bytes(0, 0, 4 * BLOCK_BYTES)

    def connect_and_close(self) -> None:
        kvclient.Client(self.socket, name="short", timeout_s=30.0).close()

    def hold(self) -> None:
        with contextlib.suppress(kvclient.KvError):
            self.client.acquire_lease(self.other.find(self.keys), 10.0, timeout_s=30.0)

    def near_misses(self) -> None:
        self.client.near_misses(self.model)

    # Python code that runs inside of a bound call.

    def raise_errors(self) -> None:
        self.region.begin_write(1 << 20)

    def iterate(self) -> None:
        kvclient.BlockKeys(key for key in self.keys)

    def read_tokens(self) -> None:
        class Token:
            def __index__(self) -> int:
                return 7

        kvclient.KeyChain(self.model).extend([Token()] * 4 * BLOCK_TOKENS)  # type: ignore[list-item]


IN_A_THREAD = (
    "find",
    "declare",
    "publish",
    "flush",
    "import_and_wait",
    "allocate_and_drop",
    "view_and_drop",
    "read",
    "connect_and_close",
    "hold",
    "near_misses",
    "raise_errors",
    "iterate",
    "read_tokens",
)


def in_daemon_threads(work: Callable[[], None], threads: int = 3) -> None:
    started = threading.Barrier(threads + 1)

    def loop() -> None:
        started.wait()
        while True:
            with contextlib.suppress(kvclient.KvError):
                work()

    for _ in range(threads):
        threading.Thread(target=loop, daemon=True).start()
    started.wait()
    time.sleep(0.05)


def main() -> None:
    process = Process(sys.argv[1])
    case = sys.argv[2]
    print("ready", flush=True)
    # A thread may be asked for the GIL between any two steps of its Python code
    sys.setswitchinterval(1e-5)
    if case in IN_A_THREAD:
        in_daemon_threads(getattr(process, case))
    elif case == "objects_alive":
        builtins.kept = (process, process.region.segment(), process.client.find(process.keys))  # type: ignore[attr-defined]
    elif case == "cycle":
        process.self = process  # type: ignore[attr-defined]
    elif case == "used_at_exit":
        in_daemon_threads(process.find)
        atexit.register(process.flush)
    elif case == "closed_at_exit":
        in_daemon_threads(process.find)
        atexit.register(process.client.close)
    elif case == "exit_in_a_thread":
        thread = threading.Thread(target=lambda: (process.flush(), sys.exit(7)))
        thread.start()
        thread.join()
    elif case == "thread_goes_on":
        threading.Thread(target=lambda: (time.sleep(0.2), process.flush(), print("flushed", flush=True))).start()
    elif case == "exit_code":
        in_daemon_threads(process.flush)
        sys.exit(3)
    elif case == "exception":
        in_daemon_threads(process.flush)
        raise RuntimeError("as it should")
    elif case == "os_exit":
        in_daemon_threads(process.flush)
        os._exit(4)
    else:
        raise ValueError(case)


if __name__ == "__main__":
    main()
