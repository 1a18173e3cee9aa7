"""Loads into blocks of the engine's pool: from the allocation of the blocks until the load's result is known.

Three kinds of loads: in the background, while the request waits and no other one knows of its blocks; those that a step
waits for, whose blocks other requests may use at once; and loads of other connectors under vLLM's MultiConnector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kvclient.vllm.groups import KvGroup, of_group, unit_of
from kvclient.vllm.plan import Load
from kvclient.vllm.tracked import TrackedRequest, confirmed_tokens


class Loads:
    """Not thread-safe."""

    def __init__(self) -> None:
        """Without loads."""
        self._groups: Sequence[KvGroup] = ()
        self._shard_count = self._block_tokens = self._unit = 0
        self._whole = False
        self._new: list[Load] = []  # since the last plan
        self._allocated: list[int] = []  # for loads, since the last plan
        # Requests that another connector may load blocks for, since the last plan, and their
        # blocks.
        self._given: dict[str, Callable[[], Sequence[int]]] = {}
        self._parked: set[str] = set()  # requests that wait for a load in the background
        # Request -> tokens that it had from a load that its step waits for
        self._outside: dict[str, int] = {}
        self._waited: set[str] = set()  # loads that the step waits for, their result still unknown

    def begin(self, groups: Sequence[KvGroup], shard_count: int, block_tokens: int, *, whole: bool) -> None:
        """``groups``: the engine's KV-cache groups. ``whole``: a block that fails fails the request's whole load."""
        self._groups, self._shard_count, self._block_tokens = groups, shard_count, block_tokens
        self._unit = unit_of(groups)
        self._whole = whole

    def add(
        self, tracked: TrackedRequest, tables: Sequence[Sequence[int]], external_tokens: int, pool: Any, *, wait: bool
    ) -> None:
        """The engine has allocated blocks, all of the request's for each group, for ``external_tokens`` to import.

        ``wait``: its step waits for them.
        """
        request_id = tracked.request.request_id
        size = self._unit * self._block_tokens
        first, tokens = tracked.local_blocks, tracked.local_blocks * size + external_tokens
        tracked.loading = True
        for number, blocks in enumerate(tables):
            tracked.tables[number].restart(blocks, pool)
            group = self._groups[number]
            last = tokens // (self._block_tokens * group.scale)
            begin = max(first * (self._unit // group.scale), group.first_block(tokens, self._block_tokens))
            self._allocated += blocks[begin:]
            if begin == last:
                continue
            shards = of_group(number, self._shard_count)
            self._new.append(
                Load(
                    request_id=request_id,
                    blocks=list(blocks[begin:last]),
                    depth=begin,
                    keys=tracked.keys.between(shards, begin, last),
                    parents=tracked.keys.before(shards, begin),
                    wait=wait,
                    whole=self._whole,
                )
            )
        if wait:
            self._waited.add(request_id)
        else:
            self._parked.add(request_id)

    def given(self, request_id: str, blocks: Callable[[], Sequence[int]]) -> None:
        """The engine has allocated ``blocks()``, all of the request's, which another connector may load."""
        self._given[request_id] = blocks

    def asked_again(self, request_id: str) -> None:
        """The engine asks for the request, so that it does not wait for a load."""
        self._parked.discard(request_id)

    def attached(self, scheduled: Mapping[str, Any]) -> tuple[set[int], Mapping[str, object]]:
        """Blocks that loads may write to since the last call, and requests whose blocks were given since.

        ``scheduled``: the step's requests. A request that is not among them waits for another connector's load.
        """
        attached = set(self._allocated)
        self._allocated = []
        given, self._given = self._given, {}
        for request_id, all_blocks in given.items():
            if request_id not in scheduled:
                self._parked.add(request_id)
                attached.update(all_blocks())
        return attached, given

    def restarted(self, request_id: str, tracked: TrackedRequest | None, *, at_once: bool) -> None:
        """The step begins the request anew. ``at_once``: in the step in which its blocks were allocated."""
        self._outside.pop(request_id, None)
        if tracked is None:
            return
        computed = tracked.request.num_computed_tokens
        if at_once and request_id not in self._parked and computed > tracked.local_tokens:
            self._outside[request_id] = computed
        self._parked.discard(request_id)

    def take(self, written: Callable[[], Iterable[int]]) -> list[Load]:
        """The loads of the next step. ``written()``: blocks that the step writes to before its forward pass."""
        loads, self._new = self._new, []
        if loads:
            engines = set(written())
            later = {load.request_id for load in loads if load.wait or not engines.isdisjoint(load.blocks)}
            for load in loads:
                load.early = load.request_id not in later
        return loads

    def in_background(self, request_id: str) -> bool:
        """Whether no other request can know of the blocks that are loaded for this one."""
        return request_id not in self._waited

    def waited(self, request_ids: Iterable[str]) -> None:
        """The results of loads are known that their steps waited for."""
        self._waited.difference_update(request_ids)

    def unknown(self, requests: Mapping[str, TrackedRequest]) -> bool:
        """Whether the result of a load that a step waits for is not known yet, of this connector or another one.

        Other requests may use these blocks as their prefix at once.
        """
        for request_id, tokens in list(self._outside.items()):
            request = requests[request_id].request if request_id in requests else None
            if request is None or confirmed_tokens(request) > tokens:
                del self._outside[request_id]
        return bool(self._waited or self._outside)

    def drop(self, request_id: str) -> int | None:
        """The request has ended. Tokens that it had from another connector's load, if that is all that is known."""
        if self._new:
            self._new = [load for load in self._new if load.request_id != request_id]
        self._given.pop(request_id, None)
        self._parked.discard(request_id)
        return self._outside.pop(request_id, None)

    def leave(self) -> list[Load]:
        """The loads that no plan has yet."""
        loads, self._new = self._new, []
        return loads


__all__ = ["Loads"]
