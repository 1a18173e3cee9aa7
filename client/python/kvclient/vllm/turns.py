"""Requests that decode, in the order in which steps look at them, and the blocks that the engine has given them since.

In each step, one request in ``block_tokens`` is given a block. To follow each of them at once would cost a step more
the more requests run; a request's turn costs hardly more for many blocks than for one. What is left to do for all
running requests in a step is one pass over vLLM's lists, in the extension module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from kvclient._native import note_given

#: Blocks that a request has been given, for each KV-cache group.
Given = Sequence[Sequence[int]]

# Requests that a step looks at.
_A_STEP = 1


class Turns:
    """Not thread-safe."""

    def __init__(self, group_count: int) -> None:
        """No request waits for its turn. ``group_count``: KV-cache groups."""
        self._group_count = group_count
        self._given: OrderedDict[str, tuple[list[int], ...]] = OrderedDict()

    def __contains__(self, request_id: str) -> bool:
        """Whether the request waits for its turn."""
        return request_id in self._given

    def add(self, request_id: str) -> None:
        """The request is to have a turn, after those that wait already; one that waits keeps its place."""
        if request_id not in self._given:
            self._given[request_id] = tuple([] for _ in range(self._group_count))

    def give(
        self, request_ids: list[str], given: list[tuple[list[int], ...] | None], others: set[str], blocks: set[int]
    ) -> tuple[list[str], list[tuple[list[int], ...]]]:
        """A step gives blocks to some of its running requests: to note for those that wait and are not ``others``.

        ``given``: for each request; None or (): nothing. Adds all blocks to ``blocks``. Returns the other requests that
        are given blocks, and what they are given.
        """
        return note_given(request_ids, given, self._given, others, blocks)

    def take(self) -> list[tuple[str, Given]]:
        """The requests whose turn it is in this step, which then wait no more, and what they have been given."""
        return [self._given.popitem(last=False) for _ in range(min(_A_STEP, len(self._given)))]

    def drop(self, request_id: str) -> Given:
        """The request waits no more. What it has been given since its last turn; (): it has waited for none."""
        return self._given.pop(request_id, ())


__all__ = ["Given", "Turns"]
