"""Calls that wait for a stopped kvmd, and a SIGINT: python -m support.interrupted SOCKET PID. Run by test_interrupt.py.

Prints one line for each call: its name and what it ended with. A call that does not see the signal waits for an
hour, which the test does not.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

import kvclient
from support.block_worker import BLOCK_BYTES, prompt, spec

HOUR = 3600.0


class Interrupted:
    def __init__(self, socket: str, pid: int) -> None:
        self.socket, self.pid = socket, pid
        self.client, self.model, self.region = self._region("first")
        chain = kvclient.KeyChain(self.model)
        root = chain.parent
        self.keys = chain.extend(prompt(8))
        self.root = root
        self.region.publish_run(self.keys, root, 0, self.region.begin_writes(list(range(8))))
        self.region.flush(30.0)
        self.geometry = kvclient.Geometry.contiguous(64, BLOCK_BYTES)

    def _region(self, name: str, timeout_s: float = 30.0) -> tuple[kvclient.Client, kvclient.Model, kvclient.Region]:
        client = kvclient.Client(self.socket, name=name, timeout_s=timeout_s)
        model = client.declare_model(spec(), timeout_s=30.0)
        geometry = kvclient.Geometry.contiguous(64, BLOCK_BYTES)
        return client, model, client.allocate_region(model, geometry, name=name, timeout_s=30.0)

    def connect(self) -> None:
        kvclient.Client(self.socket, timeout_s=HOUR)

    def wait_connected(self) -> None:
        kvclient.Client("/nonexistent/kvmd.sock", start_offline=True).wait_connected(HOUR)

    def declare(self) -> None:
        self.client.declare_model(spec(model_id="another"), timeout_s=HOUR)

    def allocate(self) -> None:
        self.client.allocate_region(self.model, self.geometry, name="second", timeout_s=HOUR)

    def adopt(self) -> None:
        self.client.adopt_region(self.model, self.geometry, name="third", timeout_s=HOUR)

    def reclaim(self) -> None:
        self.client.reclaim_orphans(timeout_s=HOUR)

    def hold(self) -> None:
        self.client.acquire_lease(self.client.find(self.keys), 10.0, timeout_s=HOUR)

    def flush(self) -> None:
        self.region.publish_run(self.keys, self.root, 0, self.region.begin_writes(list(range(8, 16))))
        self.region.flush(HOUR)

    def unregister(self) -> None:
        self.region.unregister(HOUR)

    def run(self, name: str, call: Callable[[], None]) -> None:
        """``call`` while kvmd is stopped, a SIGINT in the middle of it."""
        os.kill(self.pid, signal.SIGSTOP)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            call()
            outcome = "returned"
        except BaseException as error:
            outcome = type(error).__name__
        timer.join()
        os.kill(self.pid, signal.SIGCONT)
        print(name, outcome, flush=True)

    def all(self) -> None:
        for name in (
            "connect",
            "wait_connected",
            "declare",
            "allocate",
            "adopt",
            "reclaim",
            "hold",
            "flush",
            "unregister",
        ):
            self.run(name, getattr(self, name))
        # The interrupted allocation has left nothing: its name is free.
        self.client.allocate_region(self.model, self.geometry, name="second", timeout_s=30.0)
        print("again", "returned", flush=True)
        client, _, region = self._region("slow", timeout_s=HOUR)
        self.run("close_region", region.close)
        print("closed", region.closed, flush=True)
        client.close()

        def wait_in_a_thread() -> None:
            thread = threading.Thread(target=self.declare, daemon=True)
            thread.start()
            thread.join()

        self.run("other_threads_call", wait_in_a_thread)
        self.handlers()

    def handlers(self) -> None:
        """A handler that raises something else, and one that does not raise: the call goes on and succeeds."""

        class AlarmError(Exception):
            pass

        def ring(*_: object) -> None:
            raise AlarmError

        def answer(*_: object) -> None:
            # It may call kvclient, too.
            if self.client.find(self.keys) is not None:
                os.kill(self.pid, signal.SIGCONT)

        signal.signal(signal.SIGINT, ring)
        self.run("raising_handler", self.reclaim)
        signal.signal(signal.SIGINT, answer)
        self.run("quiet_handler", self.reclaim)


if __name__ == "__main__":
    Interrupted(sys.argv[1], int(sys.argv[2])).all()
