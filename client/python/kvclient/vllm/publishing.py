"""Which of the engine's blocks are published, and what a step publishes.

A block is published once its tokens are confirmed and the engine has cached it, and it stays published while the pool
shows the same hash object for it (scheduler.py). Of prompts, and of requests that have ended, that is the next step.
The requests that decode take turns (turns.py), so that a step costs no more because more of them run.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from kvclient._native import contents_of
from kvclient.vllm.groups import KvGroup, of_group, unit_of
from kvclient.vllm.plan import PublishRun
from kvclient.vllm.tracked import TrackedRequest, confirmed_tokens
from kvclient.vllm.turns import Given, Turns


@dataclass
class _Ended:
    """Blocks of a request that has ended, not published yet."""

    hashes: list[Any]
    run: PublishRun


class Publishing:
    """Not thread-safe."""

    def __init__(
        self,
        pool: Any,
        groups: list[KvGroup],
        block_tokens: int,
        shard_count: int,
        requests: Mapping[str, TrackedRequest],
    ) -> None:
        """``pool``: vLLM's BlockPool, of which ``blocks[id].block_hash`` is read. ``requests``: those that live."""
        self._requests = requests
        self._pool, self._groups, self._shard_count = pool, groups, shard_count
        #: Tokens of each group's blocks.
        self._sizes = [block_tokens * group.scale for group in groups]
        # Of each group: tokens after which its blocks get a hash, and the blocks that are then new
        self._unit_tokens = block_tokens * unit_of(groups)
        self._hashed = [
            (size, 1) if group.ahead else (self._unit_tokens, self._unit_tokens // size)
            for group, size in zip(groups, self._sizes, strict=True)
        ]
        # Requests that may have blocks to publish: those that each step looks at, and those that
        # decode. None is in both.
        self._candidates: dict[str, TrackedRequest] = {}
        self._turns = Turns(len(groups))
        self._ended: list[_Ended] = []
        # Block -> hash object of the content that was published
        self._published: dict[int, Any] = {}
        # Request -> blocks that others may compute again as well
        self._recomputed: dict[str, set[int]] = {}

    # ---- requests

    def consider(self, request_id: str, tracked: TrackedRequest) -> None:
        """The request may have blocks to publish in the steps that follow."""
        self.catch_up(request_id, tracked)
        self._candidates[request_id] = tracked

    def given(
        self, request_ids: list[str], given: list[tuple[list[int], ...] | None], others: set[str], blocks: set[int]
    ) -> tuple[list[str], list[tuple[list[int], ...]]]:
        """What the step gives to each of its running requests, None or nothing for most: see Turns.give.

        Returns the requests that have blocks and wait for no turn, or are among ``others``, and these blocks; adds all
        blocks to ``blocks``.
        """
        return self._turns.give(request_ids, given, others, blocks)

    def grow(self, request_ids: Iterable[str], given: Iterable[Given]) -> None:
        """The step gives these requests, which wait for no turn, further blocks, so that they fill those before."""
        for request_id, blocks in zip(request_ids, given, strict=True):
            tracked = self._requests.get(request_id)
            if tracked is None:
                continue
            for table, new in zip(tracked.tables, blocks, strict=True):
                table.extend(new, self._pool)
            if any(len(new) > 1 for new in blocks):  # a prompt's
                self._candidates[request_id] = tracked
            elif request_id not in self._candidates:
                self._turns.add(request_id)

    def restarted(self, request_id: str, tracked: TrackedRequest) -> None:
        """The request begins anew, with other blocks, which its tables have already."""
        self._turns.drop(request_id)
        self._candidates[request_id] = tracked
        self._recomputed.pop(request_id, None)

    def catch_up(self, request_id: str, tracked: TrackedRequest) -> None:
        """Have the request's tables name all blocks that it has been given. It waits for no turn."""
        _extend(tracked, self._turns.drop(request_id))

    def catch_up_all(self) -> None:
        """Have all tables name all blocks that their requests have been given."""
        for request_id, tracked in self._requests.items():
            if request_id in self._turns:
                self.consider(request_id, tracked)

    def recomputes(self, request_id: str, blocks: Iterable[int]) -> None:
        """The request and others may compute these blocks at different times: none is published while it lives."""
        self._recomputed.setdefault(request_id, set()).update(blocks)

    def is_considered(self, request_id: str) -> bool:
        """Whether the next step, or one after it, looks at the request's blocks."""
        return request_id in self._candidates or request_id in self._turns

    def reallocated(self, request_id: str) -> None:
        """The request waits for a load into other blocks, which its tables have already."""
        self._turns.drop(request_id)

    def drop(self, request_id: str, tracked: TrackedRequest | None) -> bool:
        """The request has ended, and none of its blocks is published any more. Whether others compute some of them."""
        self._candidates.pop(request_id, None)
        if tracked is not None:
            self.catch_up(request_id, tracked)
        self._turns.drop(request_id)
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

    def fresh(self, attached: set[int]) -> set[int]:
        """Those of ``attached`` that do not keep the content under which they may have been published."""
        published, pool = self._published, self._pool.blocks
        kept = set()
        for block in published.keys() & attached:
            if published[block] is pool[block].block_hash:
                kept.add(block)
            else:
                del published[block]
        return attached - kept if kept else attached

    def step(self, fresh: AbstractSet[int], scheduled: Container[str], step: int) -> list[PublishRun]:
        """What the step publishes. ``fresh``: blocks that it gives new content; ``scheduled``: its requests."""
        runs = [*self._of_ended(fresh)] if self._ended else []
        self._ended.clear()
        unsure = fresh | self.unsure() if self._recomputed else fresh
        for request_id, given in self._turns.take():
            tracked = self._requests[request_id]
            _extend(tracked, given)
            if self._look(tracked, unsure, request_id in scheduled, runs):
                self._turns.add(request_id)
        for request_id, tracked in list(self._candidates.items()):
            if tracked.since == step and self._publishes(tracked):
                continue
            if not self._look(tracked, unsure, request_id in scheduled, runs):
                del self._candidates[request_id]
        return runs

    def unsure(self) -> set[int]:
        """Blocks that several requests may be computing."""
        return set().union(*self._recomputed.values()) if self._recomputed else set()

    def runs(
        self, tracked: TrackedRequest, unsure: AbstractSet[int], *, hashed: bool
    ) -> list[tuple[PublishRun, list[Any]]]:
        """Runs of a request's blocks that are computed, cached by the engine, not published yet and not ``unsure``.

        ``hashed``: the engine has given a hash to every block of the confirmed tokens that is ever going to have one.
        With each run: the hash objects of its blocks.
        """
        runs: list[tuple[PublishRun, list[Any]]] = []
        for number in range(len(tracked.tables)):
            self._add_runs(tracked, number, unsure, hashed, runs)
        return runs

    def _of_ended(self, fresh: AbstractSet[int]) -> Iterable[PublishRun]:
        for ended in self._ended:
            same = [
                block not in fresh and self._pool.blocks[block].block_hash is content
                for block, content in zip(ended.run.blocks, ended.hashes, strict=True)
            ]
            if all(same):
                self._published.update(zip(ended.run.blocks, ended.hashes, strict=True))
                yield ended.run

    def _publishes(self, tracked: TrackedRequest) -> bool:
        """Whether a request publishes, until it starts over or its load has ended."""
        tracked.shared = tracked.shared and tracked.keys.certain
        return tracked.shared and tracked.publishes and not tracked.loading

    def _look(self, tracked: TrackedRequest, unsure: AbstractSet[int], hashed: bool, runs: list[PublishRun]) -> bool:
        """Add what the request publishes now. Whether it may have more before it is given further blocks."""
        if not self._publishes(tracked):
            return False
        for run, hashes in self.runs(tracked, unsure, hashed=hashed):
            self._published.update(zip(run.blocks, hashes, strict=True))
            runs.append(run)
        # The last block becomes full without notice, and then the request is given another one
        # or ends. A block before it may have been taken for tokens that were then rejected.
        computed = tracked.request.num_computed_tokens
        for table, (tokens, count) in zip(tracked.tables, self._hashed, strict=True):
            full = computed // tokens * count
            if table.next_block < full or len(table.blocks) > full + count:
                return True
        return False

    def _add_runs(
        self,
        tracked: TrackedRequest,
        number: int,
        unsure: AbstractSet[int],
        hashed: bool,
        runs: list[tuple[PublishRun, list[Any]]],
    ) -> None:
        request, table, group = tracked.request, tracked.tables[number], self._groups[number]
        windowed, pool, published = group.partial, self._pool.blocks, self._published
        # A block of states leaves the window with the next token; vLLM keeps it until that is
        # computed.
        computed = request.num_computed_tokens - (getattr(request, "num_in_flight_tokens", 0) if group.state else 0)
        confirmed = confirmed_tokens(request)
        # What drafts may write again has no hash yet; vLLM keeps as many tokens before a window.
        # Of the blocks after the last place where blocks of all groups end, it has yet to be seen.
        settled = (confirmed - group.kept) // self._unit_tokens * self._unit_tokens
        size = self._sizes[number]
        index, last = table.next_block, min(confirmed // size, len(table.blocks))
        if windowed and size < self._unit_tokens:
            table.note(self._pool, computed)
        if index < last and not windowed and group.scale == 1:
            blocks = table.blocks[index:last]
            hashes = contents_of(pool, blocks)
            if len(hashes) == len(blocks) and unsure.isdisjoint(blocks) and published.keys().isdisjoint(blocks):
                table.passed(last)
                runs.append((self._run(tracked, number, index, blocks), hashes))
                return
        content: Any = None
        while index < last:
            first, hashes = index, []
            while index < last:
                block = table.blocks[index]
                if windowed:
                    content = table.content(index, self._pool, computed)
                elif group.scale == 1:
                    content = pool[block].block_hash
                else:
                    content = _hash_of_all(pool[block], (index + 1) * size)
                if content is None or block in unsure or published.get(block) is content:
                    break
                hashes.append(content)
                index += 1
            if hashes:
                runs.append((self._run(tracked, number, first, table.blocks[first:index]), hashes))
            elif content is None and not (windowed and hashed and (index + 1) * size <= settled):
                break  # not cached yet: the next step asks again
            else:
                index += 1
        table.passed(index)

    def _run(self, tracked: TrackedRequest, number: int, first: int, blocks: list[int]) -> PublishRun:
        """A run of the request's blocks in one group, which are its blocks from ``first`` on."""
        keys, parents = tracked.keys.run(of_group(number, self._shard_count), first, first + len(blocks))
        return PublishRun(blocks, first, keys, parents)


def _hash_of_all(block: Any, tokens: int) -> Any:
    """The hash object of a block that ends after ``tokens`` tokens of its prefix; None: it has none of all of these.

    In a group of full attention, vLLM gives the block in which a prompt ends a hash of the names before the end, if
    blocks have several. What follows them may be what drafts write again.
    """
    hashed = getattr(block, "block_hash_num_tokens", None)
    return block.block_hash if hashed in (None, tokens) else None


def _extend(tracked: TrackedRequest, given: Given) -> None:
    """Take blocks into the request's tables that it was given in earlier steps."""
    for table, blocks in zip(tracked.tables, given):  # noqa: B905 (it may have been given none at all)
        table.extend_later(blocks)


__all__ = ["Publishing"]
