"""Worker processes that are forks of one process, which has imported what they need.

An engine's imports take far longer than its start over a small model. The parent imports and forks, no more:
it has made no client, no tensor and no thread of its own, so that a fork is as good as a fresh interpreter.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

from support.worker import Worker, serve


class _ForkServer:
    """The test's side of the parent; it ends with the test's process."""

    def __init__(self, module: str) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            subprocess.Popen(
                [sys.executable, "-m", "support.forked_worker", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).resolve().parent.parent,
                pass_fds=[theirs.fileno()],
            )

    def fork(self, requests: int, answers: int) -> tuple[int, int]:
        """Starts a worker that reads and writes these descriptors: its process and a descriptor of it."""
        socket.send_fds(self._channel, [b"fork"], [requests, answers])
        # Raises if the parent has ended.
        pid, [descriptor], _, _ = socket.recv_fds(self._channel, 64, 1)
        return pickle.loads(pid), descriptor


@cache
def _server(module: str) -> _ForkServer:
    return _ForkServer(module)


class ForkedWorker(Worker):
    """As Worker, of a module that has ``PRELOAD``: the names of the modules that the parent imports."""

    def _launch(self, module: str) -> None:
        requests, self._requests = self._pipe(write=True)
        answers, self._answers = self._pipe(write=False)
        try:
            self.pid, self._descriptor = _server(module).fork(requests, answers)
        finally:
            os.close(requests)
            os.close(answers)

    @staticmethod
    def _pipe(*, write: bool) -> tuple[int, Any]:
        """The worker's end and ours."""
        reading, writing = os.pipe()
        return (reading, os.fdopen(writing, "wb")) if write else (writing, os.fdopen(reading, "rb"))

    def _ended(self, timeout: float | None) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        self._ended(None)


def _end() -> None:
    """What an interpreter does at its end, but for taking modules apart: with PyTorch's it takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    for name in module.PRELOAD:
        importlib.import_module(name)
    gc.freeze()  # a collection in a worker passes over what it has from the parent
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    channel = socket.socket(fileno=int(sys.argv[2]))
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 16, 2)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            serve(module, *(os.fdopen(each, mode) for each, mode in zip(descriptors, ("rb", "wb"), strict=True)))
            _end()
        for each in descriptors:
            os.close(each)
        descriptor = os.pidfd_open(pid)
        socket.send_fds(channel, [pickle.dumps(pid)], [descriptor])
        os.close(descriptor)


if __name__ == "__main__":
    main()
