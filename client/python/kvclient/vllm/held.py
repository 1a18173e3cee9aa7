"""Which blocks of an engine's prefixes the marketplace holds, and what has changed since the last look.

Called by SchedulerSide (scheduler.py), in the scheduler's thread. It owns the prefixes of requests that have ended,
with their keys and tokens, and remembers which of their blocks it has reported. A look asks shared memory, so that
blocks are noticed that others publish, that kvmd stores in its host cache, and that leave either.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvclient._native import BlockKeys
from kvclient.vllm.keys import RequestKeys

# A look takes microseconds for each hundred blocks, and a router can't act on news sooner.
_INTERVAL_S = 0.1
_BLOCKS_A_LOOK = 1024
_MOST_BLOCKS = 32_768
# Each gap in a prefix costs a lookup.
_MOST_RUNS = 16


@dataclass(frozen=True)
class Prefix:
    """The full blocks of a request that has ended."""

    hashes: Sequence[bytes]  # the engine's, one for each block
    tokens: Sequence[int]
    keys: Sequence[BlockKeys]  # for each shard
    lora_id: int | None = None
    lora_name: str | None = None


def is_plain(request: Any) -> bool:
    """Whether the tokens and the adapter of a request are all that the content of its blocks depends on.

    Others are not reported: a router would take their tokens for the whole content.
    """
    return not request.cache_salt and not request.mm_features and request.prompt_embeds is None


def prefix_of(request: Any, keys: RequestKeys, tokens: int, block_tokens: int) -> Prefix:
    """The prefix of a request of which ``tokens`` have been computed."""
    count, lora = min(tokens // block_tokens, len(request.block_hashes)), request.lora_request
    return Prefix(
        hashes=list(request.block_hashes[:count]),
        tokens=list(request.all_token_ids[: count * block_tokens]),
        keys=[each[:count] for each in keys.upto(count)],
        lora_id=lora.lora_int_id if lora is not None else None,
        lora_name=lora.lora_name if lora is not None else None,
    )


@dataclass(frozen=True)
class Stored:
    """The marketplace has come to hold the blocks [first, last) of a prefix."""

    prefix: Prefix
    first: int
    last: int


@dataclass(frozen=True)
class Removed:
    """The marketplace no longer holds blocks, or holds them where the engine can't use them."""

    hashes: Sequence[bytes]


class HeldBlocks:
    """The prefixes looked after, and what has been reported of them. Not thread-safe."""

    def __init__(
        self,
        run: Callable[[Sequence[BlockKeys]], int],
        cached: Callable[[bytes], bool],
        *,
        most_blocks: int = _MOST_BLOCKS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``run(keys)``: how many leading ones of the keys, a list for each shard, the marketplace holds.

        ``cached(hash)``: whether the engine's own prefix cache has the block. ``most_blocks``: of all prefixes; those
        that were in use longest ago are forgotten.
        """
        self._run, self._cached, self._most_blocks, self._now = run, cached, most_blocks, now
        # By the last block's hash; the one to look at next is the first.
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self._used: OrderedDict[bytes, None] = OrderedDict()  # the same, used longest ago first
        self._count: dict[bytes, int] = {}  # block -> prefixes that have it
        self._reported: set[bytes] = set()
        self._dropped: list[bytes] = []  # reported, and in no prefix any more
        self._blocks = 0  # of all prefixes
        self._next = 0.0

    def add(self, prefix: Prefix) -> None:
        """Look after a prefix from now on, instead of those that it continues."""
        if not prefix.hashes or len(prefix.hashes) > self._most_blocks:
            return
        for each in prefix.hashes:
            self._count[each] = self._count.get(each, 0) + 1
        for each in prefix.hashes:
            if each in self._prefixes:
                self._forget(each)
        last = prefix.hashes[-1]
        self._prefixes[last], self._used[last] = prefix, None
        self._blocks += len(prefix.hashes)
        while self._blocks > self._most_blocks:
            self._forget(next(iter(self._used)))

    def clear(self) -> None:
        """Forget all prefixes: their keys are those of another model."""
        for last in list(self._prefixes):
            self._forget(last)

    def cleared(self) -> None:
        """The readers of the reports have dropped all of them, as after vLLM's AllBlocksCleared."""
        self._reported.clear()
        self._dropped.clear()
        self._next = 0.0

    def taken_back(self) -> Iterator[Removed]:
        """All that has been reported is gone: nothing can be imported at present."""
        gone, self._reported = list(self._reported), set()
        self._dropped.clear()
        if gone:
            yield Removed(gone)

    def changes(self) -> Iterator[Stored | Removed]:
        """What has changed since the last call, parents before the blocks that follow them."""
        if self._dropped:
            dropped, self._dropped = [each for each in self._dropped if each not in self._count], []
            gone = [each for each in dropped if each in self._reported]
            self._reported.difference_update(gone)
            if gone:
                yield Removed(gone)
        if not self._prefixes or self._now() < self._next:
            return
        self._next = self._now() + _INTERVAL_S
        looked = 0
        for _ in range(len(self._prefixes)):
            last, prefix = self._prefixes.popitem(last=False)
            self._prefixes[last] = prefix
            looked += len(prefix.hashes)
            yield from self._look(prefix)
            if looked >= _BLOCKS_A_LOOK:
                break

    def _look(self, prefix: Prefix) -> Iterator[Stored | Removed]:
        held = self._held(prefix)
        gone = [each for each, is_held in zip(prefix.hashes, held, strict=True) if not is_held]
        gone = [each for each in gone if each in self._reported]
        if gone:
            self._reported.difference_update(gone)
            yield Removed(gone[::-1])  # children before their parents
        index = 0
        while index < len(held):
            first = index
            while index < len(held) and held[index] and prefix.hashes[index] not in self._reported:
                index += 1
            if index > first:
                self._reported.update(prefix.hashes[first:index])
                yield Stored(prefix, first, index)
            else:
                index += 1

    def _held(self, prefix: Prefix) -> list[bool]:
        """Of each block, whether the marketplace holds it and the engine can use it: no block before it is missing.

        Behind a gap, the blocks that the engine has itself are not looked up: an import would not begin before them.
        """
        count = len(prefix.hashes)
        held = [False] * count
        index = 0
        for _ in range(_MOST_RUNS):
            found = self._run([keys[index:] for keys in prefix.keys])
            held[index : index + found] = [True] * found
            index += found
            first = index
            while index < count and self._cached(prefix.hashes[index]):
                index += 1
            if index in (first, count):
                break
        return held

    def _forget(self, last: bytes) -> None:
        prefix = self._prefixes.pop(last)
        del self._used[last]
        self._blocks -= len(prefix.hashes)
        for each in prefix.hashes:
            self._count[each] -= 1
            if not self._count[each]:
                del self._count[each]
                if each in self._reported:
                    self._dropped.append(each)


__all__ = ["HeldBlocks", "Prefix", "Removed", "Stored", "is_plain", "prefix_of"]
