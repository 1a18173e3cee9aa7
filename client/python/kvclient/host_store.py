"""Blocks by key in a private host region: peers' blocks are copied to it, computed ones are published from it.

Engines use it whose own KV memory can't be shared in place: tensors of a framework on a CPU, caches that grow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from kvclient._native import BlockKey, BlockKeys, Client, Match, PublishRequest, Region
from kvclient.block_pool import BlockPool


@dataclass
class HostStoreStats:
    """Cumulative, in blocks."""

    blocks_own: int = 0  # found in the own region
    blocks_imported: int = 0  # validated ones only
    blocks_failed: int = 0
    blocks_published: int = 0  # computed here


class HostStore:
    """Manages the blocks of ``region``, host memory of ``client`` that nothing else uses. Not thread-safe."""

    def __init__(self, client: Client, region: Region, *, publish: bool = True, import_timeout_s: float = 5.0) -> None:
        """``publish``: publish imported blocks as further replicas.

        ``import_timeout_s``: blocks that have not been copied by then count as misses.
        """
        self.client = client
        self.region = region
        self.stats = HostStoreStats()
        self._publish = publish
        self._import_timeout_s = import_timeout_s
        self._pool = BlockPool(region.block_count)

    @property
    def block_count(self) -> int:
        """Blocks of the region."""
        return self.region.block_count

    def fetch(self, keys: BlockKeys, parent: BlockKey, depth: int = 0, *, min_blocks: int = 1) -> list[int]:
        """Blocks of the region with the longest prefix of ``keys`` that is published, copied from peers where needed.

        ``keys``: consecutive, at most ``block_count``; ``parent``, ``depth``: the key before the first one and how
        many blocks precede it. Matches of fewer than ``min_blocks`` are not imported. Waits for the copies.
        Valid until the next call of ``fetch`` or ``store``. KvError: see ``Client.import_blocks``.
        """
        match = self.client.find(keys)
        if len(match) < max(min_blocks, 1):
            return []
        blocks: list[int] = []
        while len(blocks) < len(match):
            first = len(blocks)
            if match[first].own:
                block = self._pool.get(keys[first])
                if block is None or block != match[first].block:
                    break
                blocks.append(block)
                self.stats.blocks_own += 1
                continue
            last = next((i for i in range(first, len(match)) if match[i].own), len(match))
            before = keys[first - 1] if first else parent
            valid = self._copy(match, first, last, keys, before, depth + first, keep=blocks)
            blocks += valid
            if len(valid) < last - first:
                break
        self._pool.used(keys[: len(blocks)])
        return blocks

    def missing(self, keys: BlockKeys) -> list[int]:
        """Indices of the ``keys`` that no block of the region holds; marks the other keys' blocks as used."""
        self._pool.used(keys)
        return [index for index, key in enumerate(keys) if self._pool.get(key) is None]

    def store(
        self,
        keys: BlockKeys,
        parent: BlockKey,
        depth: int,
        missing: Sequence[int],
        fill: Callable[[Sequence[int], Sequence[int]], None],
    ) -> int:
        """Publish blocks of one chain that the region lacks.

        ``missing``: from ``missing(keys)``. ``fill(indices, blocks)`` writes the content of ``keys[indices[i]]`` to
        block ``blocks[i]`` of the region; there may be fewer of them than in ``missing``. Returns how many blocks have
        become readable.
        """
        here = {block for block in (self._pool.get(key) for key in keys) if block is not None}
        with self._taken(len(missing), here) as blocks:
            indices = list(missing[: len(blocks)])
            if not indices:
                return 0
            writes = self.region.begin_writes(blocks)
            fill(indices, blocks)
            requests = [
                PublishRequest(key=keys[i], parent=keys[i - 1] if i else parent, depth=depth + i, write=write)
                for i, write in zip(indices, writes, strict=True)
            ]
            readable = self.region.publish(requests).readable
            for i, block in zip(indices, blocks, strict=True):
                self._put(keys[i], block)
        self._pool.used(keys)
        self.stats.blocks_published += readable
        return readable

    def clear(self) -> None:
        """Withdraw all blocks."""
        self.region.retract(range(self.block_count))
        self._pool = BlockPool(self.block_count)

    def _copy(
        self, match: Match, first: int, last: int, keys: BlockKeys, parent: BlockKey, depth: int, keep: list[int]
    ) -> list[int]:
        # Blocks that the rest of the match needs must not be evicted for this part.
        pinned = {match[i].block for i in range(len(match)) if match[i].own} | set(keep)
        with self._taken(last - first, pinned) as blocks:
            if not blocks:
                return []
            ticket = self.client.import_blocks(
                match.slice(first, len(blocks)), self.region, blocks, timeout_s=self._import_timeout_s
            )
            result = ticket.wait()
            valid = blocks[: result.valid]
            for index, block in enumerate(valid):
                self._put(keys[first + index], block)
            if self._publish and valid:
                run = BlockKeys(keys[first : first + len(valid)])
                self.region.publish_run(run, parent, depth, result.writes[: len(valid)])
        self._pool.release(blocks[result.valid :])
        self.stats.blocks_imported += result.valid
        self.stats.blocks_failed += len(result.failed)
        return valid

    @contextlib.contextmanager
    def _taken(self, count: int, keep: Collection[int]) -> Iterator[list[int]]:
        """Blocks to write to; after an exception (Ctrl-C, too) they are unreadable and free again."""
        blocks = self._pool.allocate(count, keep)
        try:
            yield blocks
        except BaseException:
            self.region.retract(blocks)
            self._pool.discard(blocks)
            raise

    def _put(self, key: BlockKey, block: int) -> None:
        before = self._pool.put(key, block)
        if before is not None:
            self.region.retract([before])


__all__ = ["HostStore", "HostStoreStats"]
