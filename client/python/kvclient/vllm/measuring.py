"""Measures a worker's weights on a thread of its own, while the engine's steps go on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import torch

from kvclient.vllm.weights import Measured


class Measuring:
    """One for each worker. Called by the worker's thread only."""

    def __init__(self) -> None:
        """Nothing is measured."""
        self._number = 0
        self._thread: threading.Thread | None = None
        self._done: list[tuple[int, Measured | str]] = []

    def begin(self, number: int, measure: Callable[[], Measured | str]) -> None:
        """Begin the measurement of this number, unless it has begun; one before it ends first."""
        if number <= self._number:
            return
        self.finish()
        self._number = number
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread = threading.Thread(
            target=self._run, args=(number, measure, device), name="kvclient-measure", daemon=True
        )
        self._thread.start()

    def finish(self) -> None:
        """Wait until nothing is measured: weights are about to be written or unmapped."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def take(self) -> list[tuple[int, Measured | str]]:
        """Numbers of the measurements that have ended since the last call, and what they gave."""
        done = []
        while self._done:
            done.append(self._done.pop(0))
        return done

    def _run(self, number: int, measure: Callable[[], Measured | str], device: int | None) -> None:
        with contextlib.ExitStack() as beside:
            try:
                if device is not None:
                    beside.enter_context(torch.cuda.device(device))
                    # Whatever has written weights has queued that before this began
                    torch.cuda.synchronize()
                    beside.enter_context(torch.cuda.stream(torch.cuda.Stream()))
                result = measure()
            except Exception as error:  # it has to end, or the scheduler's side would wait for it
                result = f"{type(error).__name__}: {error}"
        self._done.append((number, result))


__all__ = ["Measuring"]
