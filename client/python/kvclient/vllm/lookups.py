"""Finds how far a request's prefix is published, over all shards and KV-cache groups of an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kvclient._native import BlockKeys, Client
from kvclient.errors import KvError
from kvclient.vllm.groups import KvGroup, of_group, unit_of
from kvclient.vllm.hits import longest_hit
from kvclient.vllm.keys import RequestKeys

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
        """``block_tokens``: of a name (ModelSpec). ``include_own``, ``by_request``: see ``SchedulerSide.attach``.

        All numbers of blocks are of those that end where blocks of all groups end: units (longest_hit).
        """
        self._client, self._groups = client, list(groups)
        self._block_tokens, self._include_own, self._by_request = block_tokens, include_own, by_request
        self._shards = [of_group(number, shard_count) for number in range(len(self._groups))]
        # Every block counts, so that one lookup tells how far the prefix reaches.
        self._plain = self._groups == [KvGroup()]
        unit = unit_of(self._groups)
        self._size = block_tokens * unit
        self._per = [unit // group.scale for group in self._groups]
        # Of groups that look ahead: tokens of a block, and blocks of a unit.
        ahead = {unit // group.scale for group in self._groups if group.ahead}
        self._ahead = [(self._size // per, per) for per in ahead]
        self._chunks_alone = all(group.chunk for group in self._groups)

    def last(self, tokens: int) -> int:
        """How many blocks of a request of ``tokens`` can be a hit at most; its last token is computed in any case."""
        if self._plain:
            return (tokens - 1) // self._block_tokens
        # To see that it can take a block, vLLM looks at one with the last token only if there are
        # several groups.
        seen = tokens if len(self._groups) > 1 else tokens - 1
        return self._without_gaps(min((tokens - 1) // self._size, self.longest(seen)))

    def longest(self, tokens: int) -> int:
        """The longest hit, in blocks, where all blocks of so many leading tokens are published."""
        return min([tokens // self._size, *((tokens // size - 1) // per for size, per in self._ahead)])

    def found(self, keys: RequestKeys, first: int, last: int) -> int:
        """How many of the blocks [first, last) a request can import that has the first ones. ``last``: see ``last``."""
        try:
            if self._plain:
                return keys.published(self._client, first, last, include_own=self._include_own)
            run = self._run_of(keys, last)
            end = longest_hit(self._groups, first, last, self._block_tokens, run)
            return end - first if self._loads(end) else 0
        except KvError as error:
            _log.warning("kvclient: no lookup: %s", error)
            return 0

    def _loads(self, end: int) -> bool:
        """Whether a hit has blocks to load: at the end of a chunk none is needed, and such a hit is not for a peer."""
        return not self._chunks_alone or any(
            group.first_block(end * self._size, self._block_tokens) < end * per
            for group, per in zip(self._groups, self._per, strict=True)
        )

    def _run_of(self, keys: RequestKeys, last: int) -> Callable[[Sequence[int], int, int], int]:
        """See longest_hit: how many leading ones of the blocks [begin, end) are published for each of the groups."""
        count, include_own = self._client.count_published, self._include_own
        whole: dict[int, list[BlockKeys]] = {}

        def run(groups: Sequence[int], begin: int, end: int) -> int:
            if begin >= end:
                return 0
            published = whole.get(groups[0])
            if published is None:
                shards = [place for number in groups for place in self._shards[number]]
                if self._groups[groups[0]].partial:
                    # Most windows are found at once, and then no keys before them are needed
                    found = count(keys.between(shards, begin, end), 0, end - begin, include_own=include_own)
                    if found == end - begin:
                        return found
                known = last * self._per[groups[0]] + int(self._groups[groups[0]].ahead)
                published = whole[groups[0]] = keys.whole(shards, known)
            return count(published, begin, end, include_own=include_own)

        return run

    def leading(self, keys: Sequence[BlockKeys]) -> int:
        """How many leading blocks are published, whose keys are given for each shard. Raises KvError."""
        return self._client.count_published(keys, 0, len(keys[0]), include_own=self._include_own)

    def _without_gaps(self, blocks: int) -> int:
        """At most ``blocks``: as many leading blocks as a request keeps all of, if failed blocks are reported as such.

        For these, vLLM goes on after the last block before the first failed one, and a window before its end must be
        there; it is not if a hit of more blocks has left the window's out.
        """
        group = self._groups[0]
        if not group.partial or self._by_request:
            return blocks
        if group.chunk:
            return min(blocks, (group.chunk - 1) // self._block_tokens)
        return min(blocks, (group.window + group.kept - 2) // self._block_tokens + 1)


__all__ = ["Lookups"]
