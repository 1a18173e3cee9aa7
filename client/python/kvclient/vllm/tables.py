"""A request's block table in one KV-cache group, and what identifies the content of its blocks.

A group with a sliding window frees a request's blocks once the window has left them, and one with chunks once the chunk
has ended, long before the request ends; the pool may then give them to anyone. Until it does, they keep their content
and its hash object, and can be published. So a table notes each block's hash object while the block is certain to be
the request's, and the block holds the request's content as long as the pool shows the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvclient.vllm.groups import KvGroup


class BlockTable:
    """The blocks of one request in one group. Not thread-safe."""

    __slots__ = ("_block_tokens", "_group", "_seen", "blocks", "next_block")

    def __init__(self, group: KvGroup, block_tokens: int) -> None:
        """Without blocks."""
        self._group, self._block_tokens = group, block_tokens
        self.blocks: list[int] = []
        self.next_block = 0  # the first one that has not been considered for publishing
        self._seen: dict[int, Any] = {}  # place -> hash object; of a group that frees blocks

    def restart(self, blocks: Sequence[int], pool: Any) -> None:
        """The engine has allocated ``blocks``, all of the request's; 0 where it has none."""
        self.blocks, self.next_block, self._seen = [], 0, {}
        self.extend(blocks, pool)

    def extend(self, blocks: Sequence[int], pool: Any) -> None:
        """The engine has allocated further ``blocks``, which nothing has freed yet."""
        first = len(self.blocks)
        self.blocks += blocks
        if self._group.partial:
            for place, block in enumerate(blocks, first):
                self._look(place, pool.blocks[block].block_hash)

    def extend_later(self, blocks: Sequence[int]) -> None:
        """The engine allocated further ``blocks`` in an earlier step, and may have freed them since."""
        self.blocks += blocks

    def content(self, place: int, pool: Any, computed: int) -> Any:
        """The hash object under which the block at ``place`` holds the request's content; None: none yet, or no more.

        Of a group that frees none that is what the pool says of the block. ``computed``: the request's computed tokens,
        as of the engine's last look at which blocks it can free.
        """
        now = pool.blocks[self.blocks[place]].block_hash
        if not self._group.partial or now is None:
            return now
        if place not in self._seen and place >= self._group.first_block(computed, self._block_tokens):
            self._look(place, now)
        return now if self._seen.get(place) is now else None

    def note(self, pool: Any, computed: int) -> None:
        """Note what the engine has given a hash since its step began; ``computed``: see ``content``.

        Where blocks of groups differ in size, it gives one to several blocks of earlier steps at once, the first of
        which leave the window at once, too.
        """
        first = max(self.next_block, self._group.first_block(computed, self._block_tokens))
        for place in range(first, len(self.blocks)):
            if place not in self._seen:
                self._look(place, pool.blocks[self.blocks[place]].block_hash)

    def passed(self, place: int) -> None:
        """All blocks before ``place`` have been considered."""
        if place > self.next_block:
            self.next_block = place
        if self._seen and self.next_block > 0:
            self._seen = {each: content for each, content in self._seen.items() if each >= self.next_block}

    def _look(self, place: int, content: Any) -> None:
        if content is not None and place >= self.next_block:
            self._seen[place] = content


__all__ = ["BlockTable"]
