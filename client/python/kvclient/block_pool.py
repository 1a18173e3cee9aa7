"""Which block of the own region holds which key: free list and least-recently-used order. Not thread-safe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable

from kvclient._native import BlockKey, BlockKeys


class BlockPool:
    """Keeps the books only: the caller withdraws a block (``Region.begin_write``) before it overwrites it."""

    def __init__(self, block_count: int) -> None:
        """All ``block_count`` blocks are free."""
        self._free = list(range(block_count - 1, -1, -1))
        self._by_key: OrderedDict[BlockKey, int] = OrderedDict()

    def __len__(self) -> int:
        """Blocks that hold a key."""
        return len(self._by_key)

    def get(self, key: BlockKey) -> int | None:
        """The block that holds ``key``; None: no block does."""
        return self._by_key.get(key)

    def allocate(self, count: int, keep: Collection[int] = ()) -> list[int]:
        """Take up to ``count`` blocks: free ones, then the least recently used that are not in ``keep``."""
        blocks = [self._free.pop() for _ in range(min(count, len(self._free)))]
        for key in list(self._by_key):
            if len(blocks) == count:
                break
            if self._by_key[key] not in keep:
                blocks.append(self._by_key.pop(key))
        return blocks

    def put(self, key: BlockKey, block: int) -> int | None:
        """``block``, taken by ``allocate``, holds ``key`` now. Returns the block that held it before, now free."""
        before = self._by_key.pop(key, None)
        if before is not None:
            self._free.append(before)
        self._by_key[key] = block
        return before

    def used(self, keys: BlockKeys) -> None:
        """Note that a request has used ``keys``, one prefix.

        The prefix's last block is evicted first, since a block is of no use without those before it.
        """
        for key in reversed(list(keys)):
            if key in self._by_key:
                self._by_key.move_to_end(key)

    def discard(self, blocks: Iterable[int]) -> None:
        """Free blocks that ``allocate`` returned, whether a key has been assigned to them or not."""
        taken = set(blocks)
        self._by_key = OrderedDict((key, block) for key, block in self._by_key.items() if block not in taken)
        self._free = [block for block in self._free if block not in taken] + sorted(taken, reverse=True)

    def release(self, blocks: Iterable[int]) -> None:
        """Free blocks that ``allocate`` returned and to which no key has been assigned."""
        self._free.extend(blocks)


__all__ = ["BlockPool"]
