"""Counters of the connector's two sides; metrics.py hands them to vLLM."""

from __future__ import annotations

from typing import Any

#: Name -> what it counts, since the last report.
COUNTERS = {
    "queried_tokens": "Prompt tokens beyond the engine's own prefix cache that were looked up",
    "matched_tokens": "Prompt tokens that peers had published",
    "imported_blocks": "Blocks imported and validated",
    "failed_blocks": "Blocks that failed validation or were not copied in time, and were computed",
    "imported_bytes": "Bytes of imported blocks",
    "published_blocks": "Blocks made readable for peers",
    "errors": "Calls that failed; the engine went on without the marketplace",
}

#: Name -> what took the time, in seconds.
TIMERS = {
    "find": "Keys and lookup of one request, on the scheduler's thread",
    "plan": "What to publish, withdraw and import in one step, on the scheduler's thread",
    "import": "One request's import, from its step to validated",
}


class Counters:
    """Sums, since the last ``take`` and in all. Not thread-safe."""

    def __init__(self) -> None:
        """All zero."""
        self._counts: dict[str, int] = {}
        self._times: dict[str, list[float]] = {}
        self._totals: dict[str, float] = {}

    def add(self, name: str, count: int) -> None:
        """Count; ``name`` from COUNTERS."""
        if count:
            self._counts[name] = self._counts.get(name, 0) + count
            self._totals[name] = self._totals.get(name, 0) + count

    def time(self, name: str, seconds: float) -> None:
        """One observation; ``name`` from TIMERS."""
        self._times.setdefault(name, []).append(seconds)
        for key, value in ((f"{name}_seconds", seconds), (f"{name}_count", 1)):
            self._totals[key] = self._totals.get(key, 0) + value

    def take(self) -> dict[str, Any]:
        """The counts since the last call as plain data; empty if there are none."""
        taken: dict[str, Any] = {**self._counts, **{f"{name}_seconds": times for name, times in self._times.items()}}
        self._counts, self._times = {}, {}
        return taken

    def totals(self) -> dict[str, float]:
        """Everything since the beginning: counts, and of each timer its sum and how many."""
        return dict(self._totals)


__all__ = ["COUNTERS", "TIMERS", "Counters"]
