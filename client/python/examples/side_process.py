"""Processes of the examples: an object in a fresh interpreter, called through a pipe."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from kvclient.errors import KvError


def _serve(make: Callable[..., Any], arguments: tuple[Any, ...], requests: Connection) -> None:
    """Run one side until the other end of the pipe closes."""
    try:
        side = make(*arguments)
        requests.send(("ready", None))
        while True:
            method, arguments = requests.recv()
            requests.send(("done", getattr(side, method)(*arguments)))
    except EOFError:
        pass
    except (KvError, torch.cuda.OutOfMemoryError) as error:
        requests.send(("failed", f"{make.__name__}: {error}"))


class Process:
    """The parent's handle of one side, ``make(*arguments)`` in a process of its own."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        """Starts it; ``answer`` waits until it is ready. ``make`` and its arguments are pickled."""
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, arguments, other))
        self._process.start()
        other.close()

    def answer(self) -> Any:
        """Wait for what the process says next."""
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            raise SystemExit("a process ended early (see above)") from None
        if kind == "failed":
            raise SystemExit(value)
        return value

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method there."""
        self._pipe.send((method, arguments))
        return self.answer()

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
