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
        # Added up when somebody asks, which is not while a request waits
        self._lookups: list[tuple[int, int, float]] = []
        self._totals_of: dict[str, list[float]] = {name: [0.0, 0] for name in TIMERS}

    def add(self, name: str, count: int) -> None:
        """Count; ``name`` from COUNTERS."""
        if count:
            self._counts[name] = self._counts.get(name, 0) + count
            self._totals[name] = self._totals.get(name, 0) + count

    def time(self, name: str, seconds: float) -> None:
        """One observation; ``name`` from TIMERS."""
        times = self._times.get(name)
        if times is None:
            times = self._times[name] = []
        times.append(seconds)
        totals = self._totals_of[name]
        totals[0] += seconds
        totals[1] += 1

    def looked_up(self, queried: int, matched: int, seconds: float) -> None:
        """One request: tokens that were looked for, those of them that were found, and the time that it took."""
        self._lookups.append((queried, matched, seconds))

    def _count_lookups(self) -> None:
        for queried, matched, seconds in self._lookups:
            self.add("queried_tokens", queried)
            self.add("matched_tokens", matched)
            self.time("find", seconds)
        self._lookups.clear()

    def take(self) -> dict[str, Any]:
        """The counts since the last call as plain data; empty if there are none."""
        self._count_lookups()
        taken: dict[str, Any] = {**self._counts, **{f"{name}_seconds": times for name, times in self._times.items()}}
        self._counts, self._times = {}, {}
        return taken

    def totals(self) -> dict[str, float]:
        """Everything since the beginning: counts, and of each timer its sum and how many."""
        self._count_lookups()
        timers = {name: totals for name, totals in self._totals_of.items() if totals[1]}
        seconds = {f"{name}_seconds": totals[0] for name, totals in timers.items()}
        return {**self._totals, **seconds, **{f"{name}_count": totals[1] for name, totals in timers.items()}}


__all__ = ["COUNTERS", "TIMERS", "Counters"]
