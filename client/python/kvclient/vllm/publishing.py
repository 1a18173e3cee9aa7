"""Which of the engine's blocks are published, and what a step publishes.

A block is published once its tokens are confirmed and the engine has cached it, and it stays published while the pool
shows the same hash object for it (scheduler.py).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from kvclient.vllm.groups import KvGroup, of_group
from kvclient.vllm.plan import PublishRun
from kvclient.vllm.tracked import TrackedRequest, confirmed_tokens


@dataclass
class _Ended:
    """Blocks of a request that has ended, not published yet."""

    hashes: list[Any]
    run: PublishRun


class Publishing:
    """Not thread-safe."""

    def __init__(self, pool: Any, groups: list[KvGroup], block_tokens: int, shard_count: int) -> None:
        """``pool``: vLLM's BlockPool, of which ``blocks[id].block_hash`` is read."""
        self._pool, self._groups, self._block_tokens, self._shard_count = pool, groups, block_tokens, shard_count
        # Requests that may have blocks to publish: a step must not cost more because more requests
        # run.
        self._candidates: dict[str, TrackedRequest] = {}
        self._ended: list[_Ended] = []
        # Block -> hash object of the content that was published
        self._published: dict[int, Any] = {}
        # Request -> blocks that others may compute again as well
        self._recomputed: dict[str, set[int]] = {}

    # ---- requests

    def consider(self, request_id: str, tracked: TrackedRequest) -> None:
        """The request may have blocks to publish in later steps."""
        self._candidates[request_id] = tracked

    def restarted(self, request_id: str, tracked: TrackedRequest) -> None:
        """The request begins anew, with other blocks."""
        self._candidates[request_id] = tracked
        self._recomputed.pop(request_id, None)

    def recomputes(self, request_id: str, blocks: Iterable[int]) -> None:
        """The request and others may compute these blocks at different times: none is published while it lives."""
        self._recomputed.setdefault(request_id, set()).update(blocks)

    def is_considered(self, request_id: str) -> bool:
        """Whether the next step looks at the request's blocks."""
        return request_id in self._candidates

    def drop(self, request_id: str) -> bool:
        """The request has ended, and none of its blocks is published any more. Whether others compute some of them."""
        self._candidates.pop(request_id, None)
        return bool(self._recomputed.pop(request_id, None))

    def end(self, tracked: TrackedRequest) -> None:
        """Publish what a request that has ended has computed, with the next step. Call ``drop`` before."""
        for run, hashes in self.runs(tracked, self.unsure(), hashed=True):
            self._ended.append(_Ended(hashes, run))

    # ---- steps

    def withdrawn(self) -> None:
        """All that was published is withdrawn, or has left with the memory that was registered."""
        self._published.clear()
        self._ended.clear()

    def fresh(self, attached: Iterable[int]) -> list[int]:
        """Those of ``attached`` that do not keep the content under which they may have been published."""
        fresh = []
        for block in attached:
            now = self._pool.blocks[block].block_hash
            if now is None or self._published.get(block) is not now:
                self._published.pop(block, None)
                fresh.append(block)
        return fresh

    def step(self, fresh: set[int], scheduled: Container[str], step: int) -> list[PublishRun]:
        """What the step publishes. ``fresh``: blocks that it gives new content; ``scheduled``: its requests."""
        runs = [*self._of_ended(fresh), *self._of_running(fresh, scheduled, step)]
        self._ended.clear()
        return runs

    def unsure(self) -> set[int]:
        """Blocks that several requests may be computing."""
        return set().union(*self._recomputed.values()) if self._recomputed else set()

    def runs(
        self, tracked: TrackedRequest, unsure: AbstractSet[int], *, hashed: bool
    ) -> Iterable[tuple[PublishRun, list[Any]]]:
        """Runs of a request's blocks that are computed, cached by the engine, not published yet and not ``unsure``.

        ``hashed``: the engine has given a hash to every block of the confirmed tokens that is ever going to have one.
        With each run: the hash objects of its blocks.
        """
        for number in range(len(tracked.tables)):
            yield from self._runs_of(tracked, number, unsure, hashed)

    def _of_ended(self, fresh: set[int]) -> Iterable[PublishRun]:
        for ended in self._ended:
            same = [
                block not in fresh and self._pool.blocks[block].block_hash is content
                for block, content in zip(ended.run.blocks, ended.hashes, strict=True)
            ]
            if all(same):
                self._published.update(zip(ended.run.blocks, ended.hashes, strict=True))
                yield ended.run

    def _of_running(self, fresh: set[int], scheduled: Container[str], step: int) -> Iterable[PublishRun]:
        unsure = fresh | self.unsure()
        for request_id, tracked in list(self._candidates.items()):
            tracked.shared = tracked.shared and tracked.keys.certain
            # Until it starts over, or the load has ended.
            if not tracked.shared or not tracked.publishes or tracked.loading:
                del self._candidates[request_id]
                continue
            if tracked.since == step:
                continue
            for run, hashes in self.runs(tracked, unsure, hashed=request_id in scheduled):
                self._published.update(zip(run.blocks, hashes, strict=True))
                yield run
            # The last block becomes full without notice, and then the request is given another one
            # or ends. A block before it may have been taken for tokens that were then rejected.
            computed = tracked.request.num_computed_tokens // self._block_tokens
            if all(table.next_block >= max(len(table.blocks) - 1, computed) for table in tracked.tables):
                del self._candidates[request_id]

    def _runs_of(
        self, tracked: TrackedRequest, number: int, unsure: AbstractSet[int], hashed: bool
    ) -> Iterable[tuple[PublishRun, list[Any]]]:
        request, table, group = tracked.request, tracked.tables[number], self._groups[number]
        windowed, pool = group.window > 0, self._pool.blocks
        # A block of states leaves the window with the next token; vLLM keeps it until that is
        # computed.
        computed = request.num_computed_tokens - (getattr(request, "num_in_flight_tokens", 0) if group.state else 0)
        last = min(confirmed_tokens(request) // self._block_tokens, len(table.blocks))
        index = table.next_block
        content: Any = None
        while index < last:
            first, hashes = index, []
            while index < last:
                block = table.blocks[index]
                content = table.content(index, self._pool, computed) if windowed else pool[block].block_hash
                if content is None or block in unsure or self._published.get(block) is content:
                    break
                hashes.append(content)
                index += 1
            if hashes:
                keys = of_group(number, self._shard_count, tracked.keys.upto(index))
                yield (
                    PublishRun(
                        blocks=table.blocks[first:index],
                        depth=first,
                        keys=[each[first:index] for each in keys],
                        parents=of_group(number, self._shard_count, tracked.keys.parents(first)),
                    ),
                    hashes,
                )
            elif content is None and not (windowed and hashed):
                break  # not cached yet: the next step asks again
            else:
                index += 1
        table.passed(index)


__all__ = ["Publishing"]
