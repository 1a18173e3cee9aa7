"""Finds how far a request's prefix is published, over all shards and KV-cache groups of an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kvclient._native import BlockKeys, Client
from kvclient.errors import KvError
from kvclient.vllm.groups import KvGroup, of_group
from kvclient.vllm.hits import longest_hit

_log = logging.getLogger(__name__)


class Lookups:
    """Not thread-safe."""

    def __init__(
        self,
        client: Client,
        groups: Sequence[KvGroup],
        shard_count: int,
        block_tokens: int,
        *,
        include_own: bool,
        by_request: bool,
    ) -> None:
        """``include_own``, ``by_request``: see ``SchedulerSide.attach``. Keys are lists for each group and shard."""
        self._client, self._groups, self._shard_count = client, list(groups), shard_count
        self._block_tokens, self._include_own, self._by_request = block_tokens, include_own, by_request
        # Every block counts, so that one lookup tells how far the prefix reaches.
        self._plain = self._groups == [KvGroup()]

    def found(self, keys: Sequence[BlockKeys], first: int, last: int) -> int:
        """How many of the blocks [first, last) a request can import that has the first ones."""
        try:
            if self._plain:
                return self._client.count_published(keys, first, last, include_own=self._include_own)
            return longest_hit(self._groups, first, last, self._block_tokens, self._run_of(keys)) - first
        except KvError as error:
            _log.warning("kvclient: no lookup: %s", error)
            return 0

    def _run_of(self, keys: Sequence[BlockKeys]) -> Callable[[Sequence[int], int, int], int]:
        """See longest_hit: how many leading ones of the blocks [begin, end) are published for each of the groups."""

        def run(groups: Sequence[int], begin: int, end: int) -> int:
            if begin >= end:
                return 0
            wanted = [each for number in groups for each in of_group(number, self._shard_count, keys)]
            return self._client.count_published(wanted, begin, end, include_own=self._include_own)

        return run

    def leading(self, keys: Sequence[BlockKeys]) -> int:
        """How many leading blocks are published, whose keys are given for each shard. Raises KvError."""
        return self._client.count_published(keys, 0, len(keys[0]), include_own=self._include_own)

    def without_gaps(self, blocks: int) -> int:
        """At most ``blocks``: as many leading blocks as a request keeps all of, if failed blocks are reported as such.

        For these, vLLM goes on after the last block before the first failed one, and a window before its end must be
        there; it is not if a hit of more blocks has left the window's out.
        """
        window = self._groups[0].window
        if not window or self._by_request:
            return blocks
        return min(blocks, (window + self._groups[0].kept - 2) // self._block_tokens + 1)


__all__ = ["Lookups"]
