"""Loads that fail: after many in a row, of any requests, none is tried for a while."""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)

_MAX_FAILURES_IN_A_ROW = 8
_PAUSE_S = 60.0


class FailedLoads:
    """Counts the failures in a row. Times are of ``time.perf_counter``. Not thread-safe."""

    def __init__(self) -> None:
        """Without failures."""
        self._in_a_row = 0
        #: No load is to be tried before.
        self.paused_until = 0.0

    def succeeded(self) -> None:
        """A load has ended, and no block of it failed."""
        self._in_a_row = 0

    def failed(self, now: float) -> None:
        """A load has ended, and not all of its blocks came."""
        self._in_a_row += 1
        if self._in_a_row < _MAX_FAILURES_IN_A_ROW:
            return
        self._in_a_row -= 1  # the next load decides anew
        self.paused_until = now + _PAUSE_S
        _log.warning(
            "kvclient: %d imports failed one after the other, so none is tried for %.0f s; "
            "kvctl doctor says what a worker can't reach",
            _MAX_FAILURES_IN_A_ROW,
            _PAUSE_S,
        )

    def forget(self) -> None:
        """Try again at once."""
        self._in_a_row, self.paused_until = 0, 0.0


__all__ = ["FailedLoads"]
