"""Finds how far a request's prefix is published, over all shards and KV-cache groups of an engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence

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

    def found(self, keys: Sequence[BlockKeys], first: int, last: int) -> int:
        """How many of the blocks [first, last) a request can import that has the first ones."""

        def run(groups: Sequence[int], begin: int, end: int) -> int:
            if begin >= end:
                return 0
            return self.leading(
                [each[begin:end] for number in groups for each in of_group(number, self._shard_count, keys)]
            )

        try:
            return longest_hit(self._groups, first, last, self._block_tokens, run) - first
        except KvError as error:
            _log.warning("kvclient: no lookup: %s", error)
            return 0

    def leading(self, keys: Sequence[BlockKeys]) -> int:
        """How many leading blocks are published, whose keys are given for each shard. Raises KvError."""
        if len(keys) == 1:
            return len(self._client.find(keys[0], include_own=self._include_own))
        return min(len(match) for match in self._client.find_shards(keys, include_own=self._include_own))

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
