"""Calls that need kvmd's answer: tried at once, then again in the background until one succeeds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from kvclient.errors import DeadlineExceededError, KvError, UnavailableError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Retried(Generic[_T]):
    """The result of ``attempt``, once it has succeeded. Thread-safe.

    If kvmd does not answer in time, ``attempt`` is called again, after pauses that grow; any other error is final.
    """

    def __init__(self, what: str, attempt: Callable[[], _T], discard: Callable[[_T], None] = lambda _: None) -> None:
        """Tries once before it returns. ``what``: name for the log. ``discard``: takes a result after ``cancel``.

        Raises the errors of ``attempt`` except for DeadlineExceededError and UnavailableError.
        """
        self._what, self._attempt, self._discard = what, attempt, discard
        self._lock = threading.Lock()
        self._result: _T | None = None
        self._error: Exception | None = None
        self._cancelled = threading.Event()
        try:
            self._result = attempt()
        except (DeadlineExceededError, UnavailableError) as error:
            _log.warning("kvclient: %s: %s; trying again in the background", what, error)
            threading.Thread(target=self._run, name="kvclient-retry", daemon=True).start()

    def result(self) -> _T | None:
        """The result; None: not yet. Raises the error that ended the attempts."""
        with self._lock:
            if self._error is not None:
                raise self._error
            return self._result

    def cancel(self) -> None:
        """End the attempts. A result that has arrived before stays available."""
        self._cancelled.set()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._cancelled.wait(pause):
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            try:
                result = self._attempt()
            except (DeadlineExceededError, UnavailableError):
                continue
            except Exception as error:
                with self._lock:
                    self._error = error
                return
            with self._lock:
                if not self._cancelled.is_set():
                    self._result = result
                    _log.warning("kvclient: %s: done, kvmd answers", self._what)
                    return
            try:
                self._discard(result)
            except KvError as error:
                _log.warning("kvclient: %s: %s", self._what, error)
            return


__all__ = ["Retried"]
