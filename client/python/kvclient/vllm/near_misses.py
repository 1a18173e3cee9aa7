"""Why an engine finds no blocks: a line in its log for each declared model that differs from its own in few fields."""

from __future__ import annotations

import logging
import time

from kvclient._native import Client, Model
from kvclient.errors import KvError

_log = logging.getLogger("vllm.kvclient")

# Each look reads the whole model table.
_PERIOD_S = 10.0
_MOST_LINES = 16
# Models that differ in more fields are unrelated: a node may have many of one architecture.
_MOST_FIELDS = 4


class NearMissLog:
    """Logs each near miss once. Not thread-safe."""

    def __init__(self) -> None:
        """No near miss has been logged."""
        self._said: set[tuple[str, str]] = set()
        self._next = 0.0

    def look(self, client: Client, model: Model) -> None:
        """Log near misses that were declared since the last look; cheap enough for every step."""
        now = time.monotonic()
        if now < self._next or len(self._said) >= _MOST_LINES:
            return
        self._next = now + _PERIOD_S
        try:
            misses = client.near_misses(model)
        except KvError:  # the client is being closed
            return
        for miss in misses:
            key = (model.fingerprint.hex, miss.theirs.fingerprint().hex)
            if key in self._said or len(self._said) >= _MOST_LINES or len(miss.differences) > _MOST_FIELDS:
                continue
            self._said.add(key)
            fields = ", ".join(f"{each.field} (here {each.ours!r}, there {each.theirs!r})" for each in miss.differences)
            _log.warning(
                "KvMarketConnector: another engine's model %s shares nothing with this one, they differ in %s",
                miss.theirs.model_id,
                fields,
            )


__all__ = ["NearMissLog"]
