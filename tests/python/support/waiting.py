"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], tries: int = 500) -> None:
    """Look so often, a hundred times a second; the test fails if it is not so then."""
    for _ in range(tries):
        if condition():
            return
        time.sleep(0.01)
    assert condition()
