"""Requests that decode, in the order in which steps look at them, and the blocks that the engine has given them since.

In each step, one request in ``block_tokens`` is given a block. To follow each of them at once would cost a step more
the more requests run; a request's turn costs hardly more for many blocks than for one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

#: Blocks that a step gave to a request, for each KV-cache group.
Given = Sequence[Sequence[int]]

# Requests that a step looks at.
_A_STEP = 1


class Turns:
    """Not thread-safe."""

    def __init__(self) -> None:
        """No request waits for its turn."""
        self._given: OrderedDict[str, list[Given]] = OrderedDict()

    def __contains__(self, request_id: str) -> bool:
        """Whether the request waits for its turn."""
        return request_id in self._given

    def add(self, request_id: str) -> None:
        """The request is to have a turn, after those that wait already; one that waits keeps its place."""
        self._given.setdefault(request_id, [])

    def give(self, request_ids: Iterable[str], given: Iterable[Given]) -> list[tuple[str, Given]]:
        """A step gives blocks to these requests: to note for those that wait. The others, and what they are given."""
        others = []
        waiting = self._given.get
        for request_id, blocks in zip(request_ids, given, strict=True):
            noted = waiting(request_id)
            if noted is None:
                others.append((request_id, blocks))
            else:
                noted.append(blocks)
        return others

    def take(self) -> list[tuple[str, list[Given]]]:
        """The requests whose turn it is in this step, which then wait no more, and what they have been given."""
        return [self._given.popitem(last=False) for _ in range(min(_A_STEP, len(self._given)))]

    def drop(self, request_id: str) -> list[Given]:
        """The request waits no more. What it has been given since its last turn."""
        return self._given.pop(request_id, [])


__all__ = ["Given", "Turns"]
