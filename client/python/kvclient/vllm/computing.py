"""Marks of the prompts that this engine is about to compute, and waits for those that others compute.

The scheduler never waits: it answers vLLM that a request's hit is not known yet, and is asked again in a later step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvclient._native import BlockKeys, Client, ComputingMark

_TTL_S = 60.0
# Steps after that of a prompt's last token, in which the workers publish
_STEPS_TO_PUBLISH = 4
# An engine that has been waited for in vain is not waited for again for so long.
_IGNORED_S = 10.0


@dataclass
class _Asked:
    """A request that was asked for and not found whole."""

    mark: ComputingMark
    since: float
    found: int  # blocks, when it was first asked for
    waits_for: int = 0  # the client
    seen: int = 0  # blocks that were there by the time that its marks were looked for
    steps_left: int = _STEPS_TO_PUBLISH


class Computing:
    """Of one engine. Not thread-safe."""

    def __init__(self, wait_s: float) -> None:
        """``wait_s``: how long a request waits at most; 0: no marks and no waits."""
        self._wait_s = wait_s
        self._asked: dict[str, _Asked] = {}
        # Requests that ended with their prompt, whose blocks are not published yet
        self._ended: list[_Asked] = []
        self._ignored: dict[int, float] = {}  # client -> until when

    @property
    def on(self) -> bool:
        """Whether requests wait, and are marked, at all."""
        return self._wait_s > 0

    def waits(
        self,
        client: Client,
        request_id: str,
        keys: BlockKeys,
        found: int,
        min_blocks: int,
        now: float,
        *,
        include_own: bool,
    ) -> bool:
        """Whether the request waits for another engine that computes its next block, and is to be asked for again.

        ``keys``: those of its blocks that may be imported, of which ``found`` leading ones are published. A wait that
        brings less than ``min_blocks`` more is not worth it. The first call marks the others.
        ``include_own``: whether ``found`` counts blocks that this engine has published itself.
        """
        if not self.on or found >= len(keys):
            return False
        asked = self._asked.get(request_id)
        if asked is None:
            asked = _Asked(client.mark_computing(keys[found:], _TTL_S), now, found)
            self._asked[request_id] = asked
        if now - asked.since >= self._wait_s:
            if asked.waits_for and found <= asked.found:
                self._ignored[asked.waits_for] = now + _IGNORED_S
            return False
        if not asked.mark.answered:
            return True
        match = client.find(keys, include_own=include_own, computing=True)
        seen = match.being_computed
        if seen is None:
            # The blocks may have been published since ``found`` was counted, and their mark ended.
            more = len(match) > max(found, asked.seen)
            asked.seen = max(asked.seen, len(match))
            return more
        if seen.own or seen.blocks < found + max(min_blocks, 1):
            return False
        if self._ignored.get(seen.client_id, 0.0) > now:
            return False
        self._ignored.pop(seen.client_id, None)
        asked.waits_for = seen.client_id
        return True

    def step(self, computed: Callable[[str], bool]) -> None:
        """End the marks of requests whose prompts are computed, a few steps later; called in each step."""
        if not self._asked and not self._ended:
            return
        for request_id, asked in self._asked.items():
            if asked.steps_left and computed(request_id):
                self._count_down(asked)
        for asked in self._ended:
            self._count_down(asked)
        self._ended = [asked for asked in self._ended if asked.steps_left]

    def _count_down(self, asked: _Asked) -> None:
        asked.steps_left -= 1
        if not asked.steps_left:
            asked.mark.end()

    def finished(self, request_id: str, computed: bool) -> None:
        """The request has ended, ``computed``: with all of its prompt, which the workers then publish."""
        asked = self._asked.pop(request_id, None)
        if asked is None:
            return
        if computed and asked.steps_left:
            self._ended.append(asked)
        else:
            asked.mark.end()

    def leave(self) -> None:
        """End all marks."""
        for asked in [*self._asked.values(), *self._ended]:
            asked.mark.end()
        self._asked.clear()
        self._ended.clear()


__all__ = ["Computing"]
