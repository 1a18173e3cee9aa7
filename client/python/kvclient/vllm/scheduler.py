"""The scheduler's side: it decides what to import, publish and withdraw. It runs without vLLM.

A block of the engine's pool is published once its tokens are confirmed, and withdrawn before the first step that
gives it new content is launched. The pool identifies a block's content: vLLM makes a new hash object each time it
takes a block into its prefix cache, so that the same object means the same content, while an equal hash need not
(the block may have been evicted and computed again).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

from kvclient._native import Client, ModelSpec, Shard
from kvclient.errors import KvError
from kvclient.vllm.adapters import Adapter, Adapters
from kvclient.vllm.computing import Computing
from kvclient.vllm.descriptions import Description, Descriptions
from kvclient.vllm.engine_hashes import EngineHashes
from kvclient.vllm.failed_loads import FailedLoads
from kvclient.vllm.groups import KvGroup, of_group
from kvclient.vllm.held import HeldBlocks, Removed, Stored, is_plain, prefix_of
from kvclient.vllm.joins import Joins
from kvclient.vllm.keys import KeySource, RequestKeys
from kvclient.vllm.lookups import Lookups
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import Load, StepPlan
from kvclient.vllm.publishing import Publishing
from kvclient.vllm.stats import Counters
from kvclient.vllm.tables import BlockTable
from kvclient.vllm.tracked import TrackedRequest, confirmed_tokens
from kvclient.vllm.wishes import prefilled_of, source_hint_of, wishes_of

_log = logging.getLogger(__name__)

# vLLM asks again for a request whose load failed, and the rest of its prefix may be imported; after
# so many failures the request is computed.
_MAX_FAILED_LOADS = 2


class SchedulerSide:
    """One for each engine. Called by the scheduler's thread only."""

    def __init__(self, options: ConnectorOptions) -> None:
        """Inactive until ``attach``."""
        self._options = options
        self.counters = Counters()
        self._computing = Computing(options.wait_for_computing_s)
        self._client: Client | None = None
        self._spec: ModelSpec | None = None
        self._keys: KeySource | None = None
        self._include_own = False
        self._block_tokens = 0
        self._groups: list[KvGroup] = [KvGroup()]
        self._shard_count = 1
        self._lookups: Lookups | None = None
        self._publishing: Publishing | None = None  # once both the shards and the pool are known
        self._by_request = False
        self._pool: Any = None
        self._cache_map: Any = None
        self._step = 0
        self._tracked: dict[str, TrackedRequest] = {}
        # LoRA name -> identity that the running requests with it have
        self._adapter_of: dict[str, str] = {}
        self._loads: list[Load] = []
        self._allocated: list[int] = []  # for loads, since the last plan
        # Requests that another connector may load blocks for, since the last plan, and their
        # blocks.
        self._given: dict[str, Callable[[], Sequence[int]]] = {}
        self._parked: set[str] = set()  # requests that wait for a load in the background
        # Request -> tokens that it had from a load that its step waits for
        self._outside: dict[str, int] = {}
        self._waited: set[str] = set()  # loads that the step waits for, their result still unknown
        self._withdraw = False
        self.failed_loads = FailedLoads()
        self.adapters = Adapters()
        self._joins = Joins(options)
        self._descriptions = Descriptions(options)
        self._fingerprint = ""
        self._model: Callable[[bool], tuple[ModelSpec | None, bool]] | None = None
        # As of the last look, the weights are known and memory is registered under them
        self._known = True
        self._mixed = False  # the pool holds blocks that other weights have computed
        self._held: HeldBlocks | None = None
        self._held_map: Any = None  # the pool's map, as of the last report

    def attach(
        self,
        client: Client,
        spec: ModelSpec,
        shards: Sequence[Shard],
        *,
        include_own: bool = False,
        hashes: EngineHashes | None = None,
        model: Callable[[bool], tuple[ModelSpec | None, bool]] | None = None,
        groups: Sequence[KvGroup] = (KvGroup(),),
        by_request: bool = False,
    ) -> None:
        """Every worker has registered its memory: ``shards`` in their order.

        ``groups``: the engine's KV-cache groups. ``by_request``: the engine can be told of a request whose load failed,
        rather than of blocks, and drops all that the request has; several groups need that.

        ``hashes``: the engine's own, which ``spec`` names; None: keys are derived from the tokens.
        ``include_own``: ``client`` has published copies of the engine's blocks, which can be imported again.
        ``model(reset)``: the spec of the model that the engine runs now (None: not known at present), and whether the
        workers' memory is registered under it. ``reset``: the prefix cache has been emptied. By default the model is
        always ``spec``.
        """
        self._groups, self._shard_count = list(groups), len(shards)
        # A request whose step waits for its load can't be told of
        by_request = by_request and self._options.load == "async"
        self._by_request = by_request and (len(groups) > 1 or groups[0].window > 0)
        of_groups = [_shard_of(shard, number) for number in range(len(groups)) for shard in shards]
        self._client, self._spec, self._keys = client, spec, KeySource(spec, of_groups, hashes)
        self._fingerprint = spec.fingerprint().hex
        self._include_own = include_own
        self._model = model
        self._block_tokens = spec.block_tokens
        self._lookups = Lookups(
            client, groups, len(shards), spec.block_tokens, include_own=include_own, by_request=self._by_request
        )
        self._begin()

    def bind_pool(self, pool: Any) -> None:
        """``pool``: vLLM's BlockPool; ``blocks[id].block_hash`` and ``cached_block_hash_to_block`` are read."""
        self._pool = pool
        self._cache_map = pool.cached_block_hash_to_block
        self._begin()

    def _begin(self) -> None:
        if self._lookups is not None and self._pool is not None:
            self._publishing = Publishing(self._pool, self._groups, self._block_tokens, self._shard_count)

    def report_held(self, cached: Callable[[bytes], bool]) -> None:
        """Have ``held_changes`` report; of a single group without a window. ``cached``: see HeldBlocks."""
        if len(self._groups) == 1 and not self._groups[0].window:
            self._held, self._held_map = HeldBlocks(lambda keys: self._finds.leading(keys), cached), self._cache_map

    def held_changes(self) -> Iterator[Stored | Removed]:
        """What the marketplace has come to hold, or no longer holds, of prefixes that the engine has computed."""
        if self._held is None:
            return
        if not self.active or not self._known or self._mixed:
            yield from self._held.taken_back()
            return
        if self._pool.cached_block_hash_to_block is not self._held_map:
            self._held_map = self._pool.cached_block_hash_to_block
            self._held.cleared()
        try:
            yield from self._held.changes()
        except KvError as error:
            _log.warning("kvclient: no lookup: %s", error)

    @property
    def publishing(self) -> Publishing:
        """What is published; precondition: it has been active."""
        assert self._publishing is not None
        return self._publishing

    @property
    def _finds(self) -> Lookups:
        assert self._lookups is not None
        return self._lookups

    @property
    def active(self) -> bool:
        """Whether both the client and the pool are known."""
        return self._client is not None and self._pool is not None

    def matched_tokens(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """How many tokens after the first ``computed`` can be imported, and whether that happens in the background.

        None: ask again. A prefill engine has computed the request, and its blocks are not found yet; or another engine
        is computing them; or kvmd-mesh is asked for blocks of other nodes.
        """
        if not self.active:
            return 0, False
        began = time.perf_counter()
        self._settle()
        tracked = self._track(request)
        tracked.local_tokens = computed
        self._parked.discard(request.request_id)
        if not self._sharing(tracked, computed) or not tracked.imports:
            return 0, False
        if request.skip_reading_prefix_cache or computed % self._block_tokens:
            return 0, False
        if tracked.failed_loads >= _MAX_FAILED_LOADS or self.failed_loads.paused(began):
            return 0, False
        if self._include_own and self._withdraw:  # this engine's copies are about to be withdrawn
            return 0, False
        first = computed // self._block_tokens
        tracked.local_blocks = first
        # The last token is computed in any case, and with it its block.
        last = self._finds.without_gaps((request.num_tokens - 1) // self._block_tokens)
        if last <= first or (last - first) * self._block_tokens < self._options.min_prefix_tokens:
            return 0, False
        blocks = self._finds.found(tracked.keys.upto(last), first, last)
        self._describe(tracked, last)
        if first + blocks < min(tracked.prefilled // self._block_tokens, last):
            tracked.first_asked = tracked.first_asked or began
            if began - tracked.first_asked < self._options.prefill_wait_s:
                return None, False
        if self._computing.on and first + blocks < last and self._waits_for_others(tracked, first, blocks, last, began):
            return None, False
        if first + blocks < last and self._waits_for_join(tracked, first + blocks, last):
            return None, False
        self.counters.add("queried_tokens", (last - first) * self._block_tokens)
        tokens = blocks * self._block_tokens
        if tokens < max(self._options.min_prefix_tokens, 1):
            tokens = 0
        self.counters.add("matched_tokens", tokens)
        self.counters.time("find", time.perf_counter() - began)
        return tokens, tokens > 0 and self._options.load == "async"

    def _waits_for_others(self, tracked: TrackedRequest, first: int, found: int, last: int, now: float) -> bool:
        """Whether another engine is computing the request's next block, and it is to be asked for again."""
        assert self._client is not None
        keys = tracked.keys.upto(last)[0][first:last]
        least = -(-self._options.min_prefix_tokens // self._block_tokens) - found
        try:
            return self._computing.waits(self._client, tracked.request.request_id, keys, found, least, now)
        except KvError as error:
            _log.warning("kvclient: no lookup: %s", error)
            return False

    def _computed(self, request_id: str) -> bool:
        """Whether all blocks of a request are computed whose tokens are known."""
        tracked = self._tracked.get(request_id)
        if tracked is None:
            return True
        last: int = (tracked.request.num_tokens - 1) // self._block_tokens
        return bool(confirmed_tokens(tracked.request) // self._block_tokens >= last)

    def _waits_for_join(self, tracked: TrackedRequest, found: int, last: int) -> bool:
        """Whether kvmd-mesh is asked for the blocks after ``found`` ones; of an engine with one KV-cache group."""
        if len(self._groups) > 1 or self._groups[0].window:
            return False
        if (last - found) * self._block_tokens < self._options.min_prefix_tokens:
            return False
        request_id = tracked.request.request_id
        if not self._joins.may_wait(request_id):
            return False
        source = source_hint_of(tracked.request)
        return self._joins.waits(request_id, [each[:last] for each in tracked.keys.upto(last)], found, source)

    def joined(self, joins: Iterable[tuple[str, int]]) -> None:
        """kvmd-mesh has been asked for one shard of each of these requests, and has brought so many blocks."""
        for request_id, fetched in joins:
            self._joins.joined(request_id, fetched)

    def allocated(self, request: Any, tables: Sequence[Sequence[int]], external_tokens: int) -> None:
        """The engine has allocated blocks, all of the request's for each group, for ``external_tokens`` to import."""
        if not self.active or external_tokens == 0:
            return
        tracked = self._track(request)
        first = tracked.local_blocks
        last = first + external_tokens // self._block_tokens
        wait = self._options.load == "sync"
        tracked.loading = True
        for number, blocks in enumerate(tables):
            tracked.tables[number].restart(blocks, self._pool)
            begin = max(first, self._groups[number].first_block(last * self._block_tokens, self._block_tokens))
            self._allocated += blocks[begin:]
            if begin == last:
                continue
            self._loads.append(
                Load(
                    request_id=request.request_id,
                    blocks=list(blocks[begin:last]),
                    depth=begin,
                    keys=[each[begin:last] for each in of_group(number, self._shard_count, tracked.keys.upto(last))],
                    parents=of_group(number, self._shard_count, tracked.keys.parents(begin)),
                    wait=wait,
                    whole=self._by_request,
                )
            )
        if wait:
            self._waited.add(request.request_id)
        else:
            self._parked.add(request.request_id)

    def given(self, request: Any, blocks: Callable[[], Sequence[int]]) -> None:
        """The engine has allocated ``blocks()``, all of the request's, and this connector loads none of them.

        Another connector may; then the request is not in the step, and its blocks are written nevertheless.
        """
        if self.active:
            self._given[request.request_id] = blocks

    def plan(self, output: Any) -> StepPlan:
        """The plan of the step that the engine is about to launch; called at the end of every ``schedule()``."""
        self._step += 1
        if not self.active:
            return StepPlan()
        began = time.perf_counter()
        plan = self._plan(output)
        self.counters.time("plan", time.perf_counter() - began)
        return plan

    def _plan(self, output: Any) -> StepPlan:
        publishing = self.publishing
        self._settle()
        self._computing.step(self._computed)
        plan = StepPlan(model=self._fingerprint)
        if self._withdraw:
            plan.withdraw_all = True
            self._withdraw = False
            publishing.withdrawn()
        plan.begin = publishing.fresh(self._attached(output))
        # Other requests may already use blocks of a load that the step waits for, so its result
        # must be known first.
        if self._options.publish and not self._waits() and self._known and not self._mixed:
            plan.publish = publishing.step(set(plan.begin), output.num_scheduled_tokens, self._step)
        plan.joins = self._joins.take()
        plan.loads, self._loads = self._loads, []
        written = set(_written_by_engine(output)) if plan.loads else set()
        later = {load.request_id for load in plan.loads if load.wait or not written.isdisjoint(load.blocks)}
        for load in plan.loads:
            load.early = load.request_id not in later
        return plan

    def failed_requests(self, request_ids: Iterable[str]) -> None:
        """Requests whose load failed, of which the engine drops all blocks. Call before ``loaded``."""
        for request_id in request_ids:
            tracked = self._tracked.get(request_id)
            if tracked is not None and tracked.loading:
                tracked.load_failed = True

    def failed(self, blocks: set[int]) -> None:
        """Blocks whose load failed. Call before ``loaded``.

        If the step waited for the load, other requests may have taken these blocks as their prefix. Several requests
        may now compute the same blocks at different times, so none is published as long as one of them lives.
        """
        for request_id, tracked in self._tracked.items():
            table = tracked.tables[0].blocks  # several groups fail by ``failed_requests``
            tracked.load_failed = tracked.load_failed or (tracked.loading and not blocks.isdisjoint(table))
            if tracked.loading and request_id not in self._waited:
                continue  # loaded in the background: no other request uses them yet
            first = next((i for i, block in enumerate(table) if block in blocks), None)
            if first is not None:
                self.publishing.recomputes(request_id, table[first:])

    def loaded(self, request_ids: Iterable[str], waited: Iterable[str]) -> None:
        """Loads that have ended, successfully or not; the engine already knows which blocks failed."""
        for request_id in waited:
            self._waited.discard(request_id)
        for request_id in (*request_ids, *waited):
            tracked = self._tracked.get(request_id)
            if tracked is not None:
                self._note_result(tracked)
                tracked.loading = False
                tracked.since = self._step
                self.publishing.consider(request_id, tracked)

    def _note_result(self, tracked: TrackedRequest) -> None:
        if not tracked.loading:
            return
        if not tracked.load_failed:
            self.failed_loads.succeeded()
            return
        tracked.load_failed = False
        tracked.failed_loads += 1
        self.failed_loads.failed(time.perf_counter())

    def finished(self, request: Any) -> int:
        """The request has ended; its blocks are about to be freed. Its leading tokens that peers are about to find."""
        tracked = self._tracked.pop(request.request_id, None)
        self._computing.finished(request.request_id)
        recomputed = self._publishing is not None and self._publishing.drop(request.request_id)
        self._loads = [load for load in self._loads if load.request_id != request.request_id]
        outside = self._outside.pop(request.request_id, None)
        self._given.pop(request.request_id, None)
        self._joins.forget(request.request_id)
        self._parked.discard(request.request_id)
        if tracked is not None and self.active and self._shares(tracked):
            self._describe(tracked, confirmed_tokens(request) // self._block_tokens)
        if tracked is not None and self._held is not None and self._shares(tracked) and is_plain(request):
            self._held.add(prefix_of(request, tracked.keys, confirmed_tokens(request), self._block_tokens))
        if tracked is None or tracked.loading or recomputed or not self.active or not self._options.publish:
            return 0
        if not tracked.publishes or (outside is not None and confirmed_tokens(request) <= outside):
            return 0
        if not self._shares(tracked):
            return 0
        self.publishing.end(tracked)
        return confirmed_tokens(request) // self._block_tokens * self._block_tokens

    def _describe(self, tracked: TrackedRequest, blocks: int) -> None:
        """Tell kvmd-mesh the tokens of the request's leading blocks, for routers."""
        request, first, size = tracked.request, tracked.described, self._block_tokens
        if blocks <= first or self._client is None or not self._descriptions.on or not is_plain(request):
            return
        assert self._spec is not None
        tracked.described = blocks
        keys = tracked.keys.upto(blocks)[0][first:blocks]
        tokens = request.all_token_ids[first * size : blocks * size]
        adapter = request.lora_request.lora_name if request.lora_request is not None else ""
        self._descriptions.tell(self._client, Description(self._spec, keys, list(tokens), adapter))

    def _shares(self, tracked: TrackedRequest) -> bool:
        """Whether the keys of an ended request's blocks say what they hold."""
        return tracked.shared and self._known and not self._mixed and tracked.keys.certain

    def reset(self) -> None:
        """Withdraw all blocks with the next step: the weights or the cache have changed."""
        self._withdraw = True

    def close(self) -> None:
        """The engine ends."""
        self._descriptions.close()

    def leave(self) -> StepPlan:
        """The plan that withdraws all blocks and ends the loads under way; inactive afterwards."""
        self._computing.leave()
        self._descriptions.close()
        self._client = self._lookups = None  # neither keeps the client
        loads, self._loads = self._loads, []
        return StepPlan(withdraw_all=True, loads=loads)

    def _settle(self) -> None:
        """Look whether the engine has emptied its prefix cache or changed its weights since the last step."""
        # A reset makes a new map
        reset = self._pool.cached_block_hash_to_block is not self._cache_map
        if reset:
            self._cache_map = self._pool.cached_block_hash_to_block
            self._withdraw = True
            self._mixed = False
            self.adapters.forget_cached()
        if self._model is None:
            return
        spec, registered = self._model(reset)
        if self._known and not registered:
            # What was published left with the memory that was registered
            self.publishing.withdrawn()
        self._known = spec is not None and registered
        if spec is not None and spec is not self._spec and spec != self._spec:
            self._renew(spec, empty=reset or self._pool_is_empty())

    def _renew(self, spec: ModelSpec, *, empty: bool) -> None:
        """The weights have changed: derive new keys, which no cached block has."""
        assert self._keys is not None
        self._spec, self._fingerprint = spec, spec.fingerprint().hex
        self._keys = KeySource(spec, self._keys.shards, self._keys.hashes)
        self._mixed = not empty
        if self._held is not None:
            self._held.clear()
        if self._mixed:
            _log.warning(
                "kvclient: the weights have been changed under a prefix cache that holds blocks of the old ones; "
                "nothing is shared until it is reset (reset_prefix_cache)"
            )
        self.publishing.withdrawn()
        for tracked in self._tracked.values():
            tracked.shared = tracked.shared and empty
            tracked.keys = self._keys_of(tracked.request, tracked.adapter)
            tracked.described = 0

    def _pool_is_empty(self) -> bool:
        """Whether no block of the pool is in use or cached."""
        pool = self._pool
        return not len(pool.cached_block_hash_to_block) and pool.get_num_free_blocks() >= pool.num_gpu_blocks - 1

    def _keys_of(self, request: Any, adapter: Adapter | None) -> RequestKeys:
        assert self._keys is not None
        unknown = "unknown"  # such a request is not shared: its keys are never used
        return RequestKeys(self._keys, request, adapter.identity if adapter else unknown)

    def _sharing(self, tracked: TrackedRequest, computed: int) -> bool:
        """Whether the content of the request's blocks is certain; ``computed``: tokens in the engine's own cache."""
        tracked.shared = self._known and not self._mixed and tracked.keys.certain
        lora = tracked.request.lora_request
        if lora is None:
            return tracked.shared
        adapter = self.adapters.of(lora)
        if adapter is None or (adapter.replaced and computed):
            tracked.shared = False
        elif tracked.adapter is None or tracked.adapter.identity != adapter.identity:
            tracked.adapter, tracked.keys = adapter, self._keys_of(tracked.request, adapter)
        if adapter is not None and self._adapter_of.get(lora.lora_name) != adapter.identity:
            self._adapter_of[lora.lora_name] = adapter.identity
            # Others may have begun with the adapter's earlier content
            for other in self._tracked.values():
                theirs = other.request.lora_request
                if theirs is not None and theirs.lora_name == lora.lora_name and other.adapter:
                    other.shared = other.shared and other.adapter.identity == adapter.identity
        return tracked.shared

    def _track(self, request: Any) -> TrackedRequest:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            adapter = self.adapters.of(request.lora_request) if request.lora_request is not None else None
            tracked = TrackedRequest(request, self._keys_of(request, adapter), adapter, since=self._step)
            tracked.tables = [BlockTable(group, self._block_tokens) for group in self._groups]
            tracked.publishes, tracked.imports = wishes_of(request)
            tracked.prefilled = prefilled_of(request)
            self._tracked[request.request_id] = tracked
        return tracked

    def _attached(self, output: Any) -> set[int]:
        """All blocks that the step may write to for the first time; it may contain others."""
        attached = set(self._allocated)
        self._allocated = []
        given, self._given = self._given, {}
        for request_id, all_blocks in given.items():
            if request_id not in output.num_scheduled_tokens:
                self._parked.add(request_id)
                attached.update(all_blocks())
        for new in output.scheduled_new_reqs:
            self._restart(new.req_id, new.block_ids, at_once=new.req_id in given)
            attached.update(*new.block_ids)
        cached = output.scheduled_cached_reqs
        # Most running requests got no block. vLLM gives a resumed one all of its blocks.
        for request_id, block_ids in compress(
            zip(cached.req_ids, cached.new_block_ids, strict=True), cached.new_block_ids
        ):
            if request_id in cached.resumed_req_ids:
                self._restart(request_id, block_ids, at_once=request_id in given)
            elif request_id in self._tracked:
                tracked = self._tracked[request_id]
                for table, blocks in zip(tracked.tables, block_ids, strict=True):
                    table.extend(blocks, self._pool)
                self.publishing.consider(request_id, tracked)
            attached.update(*block_ids)
        attached.update(_written_by_engine(output))
        attached.discard(0)  # vLLM's null block
        return attached

    def _restart(self, request_id: str, tables: Sequence[Sequence[int]], *, at_once: bool) -> None:
        """``at_once``: in the step in which its blocks were allocated; a load of them in the background has ended."""
        tracked = self._tracked.get(request_id)
        self._outside.pop(request_id, None)
        if tracked is not None:
            computed = tracked.request.num_computed_tokens
            if at_once and request_id not in self._parked and computed > tracked.local_tokens:
                self._outside[request_id] = computed
            self._parked.discard(request_id)
            for table, blocks in zip(tracked.tables, tables, strict=True):
                table.restart(blocks, self._pool)
            tracked.since = self._step
            self.publishing.restarted(request_id, tracked)

    def _waits(self) -> bool:
        """Whether the result of a load that a step waits for is not known yet, of this connector or another one.

        Other requests may use these blocks as their prefix at once.
        """
        for request_id, tokens in list(self._outside.items()):
            request = self._tracked[request_id].request if request_id in self._tracked else None
            if request is None or confirmed_tokens(request) > tokens:
                del self._outside[request_id]
        return bool(self._waited or self._outside)


def _shard_of(shard: Shard, group: int) -> Shard:
    return Shard(
        tp_rank=shard.tp_rank, tp_size=shard.tp_size, pp_rank=shard.pp_rank, pp_size=shard.pp_size, kv_group=group
    )


def _written_by_engine(output: Any) -> Iterable[int]:
    """Blocks that the step zeroes or copies to before its forward pass."""
    yield from getattr(output, "new_block_ids_to_zero", None) or ()
    for copy in getattr(output, "kv_cache_block_copies", None) or ():
        yield copy.dst_block_id


__all__ = ["SchedulerSide"]
