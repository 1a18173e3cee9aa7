"""A worker process: a fresh interpreter (no fork) that makes an object and runs its methods on request.

The object is ``MODULE.make(*arguments)``. Requests and answers are pickled, one at a time; an exception comes
back as what it was.
"""

from __future__ import annotations

import importlib
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO


def _send(stream: BinaryIO, value: object) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: BinaryIO) -> Any:
    header = stream.read(8)
    if len(header) < 8:
        raise EOFError("the worker ended")
    return pickle.loads(stream.read(struct.unpack("<Q", header)[0]))


class Worker:
    """The test's side. ``worker.call("method", ...)`` waits for the answer."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._launch(module)
        self._request(arguments)
        self._answer()

    def _launch(self, module: str) -> None:
        """Starts the process: ``pid``, ``_requests`` and ``_answers`` are its own."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: BinaryIO = self._process.stdin
        self._answers: BinaryIO = self._process.stdout
        self.pid = self._process.pid

    def _ended(self, timeout: float) -> bool:
        """Whether the process has ended within so many seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _request(self, value: object) -> None:
        _send(self._requests, value)

    def _answer(self) -> Any:
        outcome, value = _receive(self._answers)
        if outcome == "raised":
            raise value
        return value

    def call(self, method: str, *arguments: object, **keywords: object) -> Any:
        return self.start(method, *arguments, **keywords)()

    def start(self, method: str, *arguments: object, **keywords: object) -> Callable[[], Any]:
        """Begin a call; what is returned waits for its answer."""
        self._request((method, arguments, keywords))
        return self._answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._requests.close()
        self._answers.close()
        if not self._ended(60):  # an engine's interpreter takes seconds to end
            self.kill()
            raise TimeoutError(f"process {self.pid} did not end")


def serve(module: ModuleType, requests: BinaryIO, answers: BinaryIO) -> None:
    """The worker's side: makes the object and answers until there are no more requests."""
    try:
        target = module.make(*_receive(requests))
    except Exception as error:
        _send(answers, ("raised", error))
        return
    _send(answers, ("returned", None))
    while True:
        try:
            method, arguments, keywords = _receive(requests)
        except EOFError:
            return
        try:
            _send(answers, ("returned", getattr(target, method)(*arguments, **keywords)))
        except Exception as error:
            _send(answers, ("raised", error))


def main() -> None:
    # What prints by accident must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(importlib.import_module(sys.argv[1]), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
