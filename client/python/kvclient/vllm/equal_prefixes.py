"""Requests whose prefix is being imported for another one of the same engine: they wait instead of copying it again.

vLLM finds the blocks of an import for other requests once it has ended. It asks again for a request that waits, in each
step, and then has most of its prefix in its own cache. The wait is bounded, ends as soon as the other request's import
has ended, in whatever way, and only requests that wait for nothing themselves are waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvclient._native import BlockKey, BlockKeys
from kvclient.vllm.tracked import TrackedRequest


@dataclass
class _Import:
    request_id: str
    first: int
    names: BlockKeys  # of its blocks, from the first one on


class EqualPrefixes:
    """Imports in the background that are under way. Not thread-safe."""

    def __init__(self, block_tokens: int, min_tokens: int, wait_s: float, names: int = 1) -> None:
        """Blocks of ``block_tokens``. A request waits for at least ``min_tokens``, at most ``wait_s`` in all.

        ``names``: of so many names each (RequestKeys.ends).
        """
        self._least_blocks, self._wait_s, self._block_names = -(-min_tokens // block_tokens), wait_s, names
        self._imports: dict[str, _Import] = {}  # by request
        self._by_name: dict[BlockKey, _Import] = {}  # by its first block; of equal ones the first
        self._waits_for: dict[str, str] = {}  # request -> the one whose import it waits for

    @property
    def any(self) -> bool:
        """False: no import is under way and no request waits for one, so that none has to wait."""
        return bool(self._imports or self._waits_for)

    def began(self, tracked: TrackedRequest, first: int, last: int) -> None:
        """The request's blocks [first, last) are imported in the background."""
        request_id = tracked.request.request_id
        self.forget(request_id)
        if first < last:
            made = _Import(request_id, first, tracked.keys.ends(first, last, self._block_names))
            self._imports[request_id] = made
            self._by_name.setdefault(made.names[0], made)

    def ended(self, request_id: str) -> None:
        """The request's import has ended, well or not."""
        ended = self._imports.pop(request_id, None)
        if ended is not None and self._by_name.get(ended.names[0]) is ended:
            del self._by_name[ended.names[0]]

    def forget(self, request_id: str) -> None:
        """The request has ended, and with it its import."""
        self._waits_for.pop(request_id, None)
        self.ended(request_id)

    def waits_still(self, tracked: TrackedRequest, now: float) -> bool:
        """Whether the request waits, and what it waits for has not ended; needs no lookup. ``now``: perf_counter's."""
        request_id = tracked.request.request_id
        if self._waits_for.get(request_id) in self._imports and self._in_time(tracked, now):
            return True
        self._waits_for.pop(request_id, None)
        return False

    def waits(self, tracked: TrackedRequest, first: int, found: int, last: int, now: float) -> bool:
        """Whether the request, which would import ``found`` of its blocks [first, last), waits for another's import.

        That import has to bring at least half of what it would import itself.
        """
        if not self._by_name:
            return False
        names = tracked.keys.ends(first, last, self._block_names)
        other = self._by_name.get(names[0])
        if other is None or not self._in_time(tracked, now):
            return False
        shared = _equal(names, other.names)
        if shared < self._least_blocks or 2 * shared < found:
            return False
        tracked.equal_since = tracked.equal_since or now
        self._waits_for[tracked.request.request_id] = other.request_id
        return True

    def _in_time(self, tracked: TrackedRequest, now: float) -> bool:
        return not tracked.equal_since or now - tracked.equal_since < self._wait_s

    def leave(self) -> None:
        """No import is waited for any more."""
        self._imports.clear()
        self._by_name.clear()
        self._waits_for.clear()


def _equal(ours: BlockKeys, theirs: BlockKeys) -> int:
    """How many names are equal, of which the first is: a name holds all those before it."""
    equal, most = 1, min(len(ours), len(theirs))
    while equal < most:
        middle = (equal + most + 1) // 2
        if ours[middle - 1] == theirs[middle - 1]:
            equal = middle
        else:
            most = middle - 1
    return equal


__all__ = ["EqualPrefixes"]
