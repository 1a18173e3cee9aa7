"""The scheduler's side: it decides what to import, publish and withdraw. It runs without vLLM.

A block of the engine's pool is published once its tokens are confirmed, and withdrawn before the first step that
gives it new content is launched. The pool identifies a block's content: vLLM makes a new hash object each time it
takes a block into its prefix cache, so that the same object means the same content, while an equal hash need not
(the block may have been evicted and computed again).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

from kvclient._native import Client, ModelSpec, Shard
from kvclient.errors import KvError
from kvclient.vllm.adapters import Adapters
from kvclient.vllm.admission import Admission
from kvclient.vllm.computing import Computing
from kvclient.vllm.descriptions import Description, Descriptions
from kvclient.vllm.engine_hashes import EngineHashes
from kvclient.vllm.equal_prefixes import EqualPrefixes
from kvclient.vllm.failed_loads import FailedLoads
from kvclient.vllm.groups import KvGroup, unit_of
from kvclient.vllm.held import HeldBlocks, Removed, Stored, is_plain, prefix_of
from kvclient.vllm.joins import Joins
from kvclient.vllm.loads import Loads
from kvclient.vllm.lookups import Lookups
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import StepPlan
from kvclient.vllm.publishing import Publishing
from kvclient.vllm.requests import Requests
from kvclient.vllm.running_model import NOTHING, ModelNow, RunningModel, Seen
from kvclient.vllm.stats import Counters
from kvclient.vllm.tracked import TrackedRequest, confirmed_tokens

_log = logging.getLogger(__name__)

# vLLM asks again for a request whose load failed, and the rest of its prefix may be imported; after
# so many failures the request is computed.
_MAX_FAILED_LOADS = 2
_YIELD_S = 0.001


class SchedulerSide:
    """One for each engine. Called by the scheduler's thread only."""

    def __init__(self, options: ConnectorOptions) -> None:
        """Inactive until ``attach``."""
        self._options = options
        self.counters = Counters()
        self.failed_loads = FailedLoads()
        self.adapters = Adapters()
        self._requests = Requests(self.adapters)
        self._loads = Loads()
        self._joins = Joins(options)
        self._descriptions = Descriptions(options)
        self._computing = Computing(options.wait_for_computing_s)
        self._equal = EqualPrefixes(1, 1, 0.0)
        self._client: Client | None = None
        self._model: RunningModel | None = None
        self._lookups: Lookups | None = None
        self._admission: Admission | None = None
        self._publishing: Publishing | None = None  # once both the shards and the pool are known
        self._pool: Any = None
        self._include_own = False
        self._block_tokens = 0  # of a name (ModelSpec)
        self._unit_tokens = 0  # between places where blocks of all groups end
        self._groups: list[KvGroup] = [KvGroup()]
        self._shard_count = 1
        self._step = 0
        self._idle = False  # the last step computed nothing
        self._withdraw = False
        self._asked: list[TrackedRequest] = []  # asked for since the last plan
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
        model: ModelNow | None = None,
        groups: Sequence[KvGroup] = (KvGroup(),),
        by_request: bool = False,
    ) -> None:
        """Every worker has registered its memory: ``shards`` in their order.

        ``groups``: the engine's KV-cache groups. ``by_request``: the engine can be told of a request whose load failed,
        rather than of blocks, and drops all that the request has; several groups need that.

        ``hashes``: the engine's own, which ``spec`` names; None: keys are derived from the tokens.
        ``include_own``: ``client`` has published copies of the engine's blocks, which can be imported again.
        ``model``: see ModelNow; None: the model is always ``spec``.
        """
        self._groups, self._shard_count, self._block_tokens = list(groups), len(shards), spec.block_tokens
        unit = unit_of(groups)
        self._unit_tokens = unit * self._block_tokens
        several = len(groups) > 1 or groups[0].partial
        # A request whose step waits for its load can't be told of
        by_request = by_request and self._options.load == "async" and several
        of_groups = [_shard_of(shard, number) for number in range(len(groups)) for shard in shards]
        self._client, self._include_own = client, include_own
        scales = [group.scale for group in groups] if unit > 1 else ()
        self._model = RunningModel(spec, of_groups, hashes, model, scales)
        self._requests.begin(self._groups, self._block_tokens)
        self._loads.begin(self._groups, len(shards), self._block_tokens, whole=by_request)
        self._lookups = Lookups(
            client, groups, len(shards), spec.block_tokens, include_own=include_own, by_request=by_request
        )
        self._equal = EqualPrefixes(
            self._unit_tokens, self._options.min_prefix_tokens, self._options.import_timeout_s, unit
        )
        self._admission = Admission(
            self._options,
            client,
            self._lookups,
            self._computing,
            None if several else self._joins,
            self._equal,
            self.counters,
            self._unit_tokens,
            include_own=include_own,
            names=unit,
        )
        self._begin()

    def bind_pool(self, pool: Any) -> None:
        """``pool``: vLLM's BlockPool; ``blocks[id].block_hash`` and ``cached_block_hash_to_block`` are read."""
        self._pool = pool
        self._begin()

    def _begin(self) -> None:
        if self._model is not None and self._pool is not None:
            self._model.bind(self._pool)
            self._publishing = Publishing(
                self._pool, self._groups, self._block_tokens, self._shard_count, self._requests.by_id
            )

    def report_held(self, cached: Callable[[bytes], bool]) -> None:
        """Have ``held_changes`` report; of a single group without a window. ``cached``: see HeldBlocks."""
        if len(self._groups) == 1 and not self._groups[0].partial:
            self._held = HeldBlocks(lambda keys: self._found(keys), cached)
            self._held_map = self._pool.cached_block_hash_to_block

    def _found(self, keys: Sequence[Any]) -> int:
        assert self._lookups is not None
        return self._lookups.leading(keys)

    def held_changes(self) -> Iterator[Stored | Removed]:
        """What the marketplace has come to hold, or no longer holds, of prefixes that the engine has computed."""
        if self._held is None:
            return
        if not self.active or not self.model.shares:
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
    def model(self) -> RunningModel:
        """The model that runs; precondition: it has been active."""
        assert self._model is not None
        return self._model

    @property
    def active(self) -> bool:
        """Whether both the client and the pool are known."""
        return self._client is not None and self._pool is not None

    def matched_tokens(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """How many tokens after the first ``computed`` can be imported, and whether that happens in the background.

        None: ask again. A prefill engine has computed the request, and its blocks are not found yet; or another engine
        is computing them; or kvmd-mesh is asked for blocks of other nodes.
        """
        admission, model, pool = self._admission, self._model, self._pool
        if admission is None or model is None or pool is None:
            return 0, False
        began = time.perf_counter()
        seen = model.look(pool)
        if seen is not NOTHING:
            self._settle(seen)
        request_id = request.request_id
        tracked = self._requests.by_id.get(request_id)
        if tracked is None:
            tracked = self._requests.track(request, model.keys, self._step)
        else:
            self._loads.asked_again(request_id)
            self._equal.ended(request_id)
        tracked.local_tokens, tracked.local_blocks = computed, computed // self._unit_tokens
        if not self._requests.certain(tracked, model, computed) or not tracked.imports:
            if not (model.measuring and tracked.imports):
                return 0, False
            # Weights are measured in less time than a prompt is computed. An engine in the caller's
            # own process asks again at once, and would keep the interpreter from who measures.
            if self._idle:
                time.sleep(_YIELD_S)
            return None, False
        if request.skip_reading_prefix_cache or computed % self._unit_tokens:
            return 0, False
        if tracked.failed_loads >= _MAX_FAILED_LOADS or began < self.failed_loads.paused_until:
            return 0, False
        if self._include_own and self._withdraw:  # this engine's copies are about to be withdrawn
            return 0, False
        tokens = admission.tokens(tracked, computed, began)
        self._asked.append(tracked)
        return tokens, bool(tokens) and self._options.load == "async"

    def joined(self, joins: Iterable[tuple[str, int]]) -> None:
        """kvmd-mesh has been asked for one shard of each of these requests, and has brought so many blocks."""
        for request_id, fetched in joins:
            self._joins.joined(request_id, fetched)

    def allocated(self, request: Any, tables: Sequence[Sequence[int]], external_tokens: int) -> None:
        """The engine has allocated blocks, all of the request's for each group, for ``external_tokens`` to import."""
        if self.active and external_tokens:
            wait = self._options.load == "sync"
            self.publishing.reallocated(request.request_id)
            tracked = self._requests.track(request, self.model.keys, self._step)
            self._loads.add(tracked, tables, external_tokens, self._pool, wait=wait)
            if not wait:  # else the engine knows the blocks at once
                first = tracked.local_blocks
                self._equal.began(tracked, first, first + external_tokens // self._unit_tokens)

    def given(self, request: Any, blocks: Callable[[], Sequence[int]]) -> None:
        """The engine has allocated ``blocks()``, all of the request's, and this connector loads none of them.

        Another connector may; then the request is not in the step, and its blocks are written nevertheless.
        """
        if self.active:
            self._loads.given(request.request_id, blocks)

    def plan(self, output: Any) -> StepPlan:
        """The plan of the step that the engine is about to launch; called at the end of every ``schedule()``."""
        self._step += 1
        self._idle = not output.num_scheduled_tokens
        publishing, model = self._publishing, self._model
        if self._client is None or publishing is None or model is None:
            return StepPlan()
        began = time.perf_counter()
        plan = self._plan(output, publishing, model)
        self.counters.time("plan", time.perf_counter() - began)
        return plan

    def _plan(self, output: Any, publishing: Publishing, model: RunningModel) -> StepPlan:
        seen = model.look(self._pool)
        if seen is not NOTHING:
            self._settle(seen)
        self._computing.step(self._requests.computed)
        plan = StepPlan(model=model.fingerprint)
        if self._withdraw:
            plan.withdraw_all = True
            self._withdraw = False
            publishing.withdrawn()
        fresh = publishing.fresh(self._attached(output, publishing))
        plan.begin = list(fresh)
        # Other requests may already use blocks of a load that the step waits for, so its result
        # must be known first.
        if self._options.publish and not self._loads.unknown(self._requests.by_id) and model.shares:
            plan.publish = publishing.step(fresh, output.num_scheduled_tokens, self._step)
        if self._asked:
            self._describe_asked()
        plan.joins = self._joins.take()
        plan.loads = self._loads.take(lambda: _written_by_engine(output))
        return plan

    def failed_requests(self, request_ids: Iterable[str]) -> None:
        """Requests whose load failed, of which the engine drops all blocks. Call before ``loaded``."""
        for request_id in request_ids:
            tracked = self._requests.by_id.get(request_id)
            if tracked is not None and tracked.loading:
                tracked.load_failed = True

    def failed(self, blocks: set[int]) -> None:
        """Blocks whose load failed. Call before ``loaded``.

        If the step waited for the load, other requests may have taken these blocks as their prefix. Several requests
        may now compute the same blocks at different times, so none is published as long as one of them lives.
        """
        self.publishing.catch_up_all()
        for request_id, tracked in self._requests.by_id.items():
            table = tracked.tables[0].blocks  # several groups fail by ``failed_requests``
            tracked.load_failed = tracked.load_failed or (tracked.loading and not blocks.isdisjoint(table))
            if tracked.loading and self._loads.in_background(request_id):
                continue  # no other request uses them yet
            first = next((i for i, block in enumerate(table) if block in blocks), None)
            if first is not None:
                self.publishing.recomputes(request_id, table[first:])

    def loaded(self, request_ids: Iterable[str], waited: Iterable[str]) -> None:
        """Loads that have ended, successfully or not; the engine already knows which blocks failed."""
        waited = list(waited)
        self._loads.waited(waited)
        for request_id in (*request_ids, *waited):
            tracked = self._requests.by_id.get(request_id)
            if tracked is not None:
                self._note_result(tracked)
                self._equal.ended(request_id)
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
        request_id = request.request_id
        self._computing.finished(request_id, self._requests.computed(request_id))
        tracked = self._requests.by_id.pop(request_id, None)
        recomputed = self._publishing is not None and self._publishing.drop(request_id, tracked)
        outside = self._loads.drop(request_id)
        self._equal.forget(request_id)
        self._joins.forget(request_id)
        if tracked is None or not self._shares(tracked):
            return 0
        if self.active:
            self._describe(tracked, confirmed_tokens(request) // self._block_tokens)
        if self._held is not None and is_plain(request):
            self._held.add(prefix_of(request, tracked.keys, confirmed_tokens(request), self._block_tokens))
        if tracked.loading or recomputed or not self.active or not self._options.publish or not tracked.publishes:
            return 0
        if outside is not None and confirmed_tokens(request) <= outside:
            return 0
        self.publishing.end(tracked)
        return confirmed_tokens(request) // self._block_tokens * self._block_tokens

    def _describe_asked(self) -> None:
        """Tell kvmd-mesh of the requests that were asked for since the last step."""
        asked, self._asked = self._asked, []
        if self._descriptions.on:
            for tracked in asked:
                if tracked.request.request_id in self._requests.by_id and tracked.shared:
                    self._describe(tracked, (tracked.request.num_tokens - 1) // self._block_tokens)

    def _describe(self, tracked: TrackedRequest, blocks: int) -> None:
        """Tell kvmd-mesh the tokens of the request's leading blocks, for routers."""
        request, first, size = tracked.request, tracked.described, self._block_tokens
        if blocks <= first or self._client is None or not self._descriptions.on or not is_plain(request):
            return
        if self._unit_tokens > size:
            return  # blocks of the first group have more tokens than a name, or other groups' have
        tracked.described = blocks
        keys = tracked.keys.upto(blocks)[0][first:blocks]
        tokens = request.all_token_ids[first * size : blocks * size]
        adapter = request.lora_request.lora_name if request.lora_request is not None else ""
        self._descriptions.tell(self._client, Description(self.model.spec, keys, list(tokens), adapter))

    def _shares(self, tracked: TrackedRequest) -> bool:
        """Whether the keys of an ended request's blocks say what they hold."""
        return tracked.shared and self._model is not None and self._model.shares and tracked.keys.certain

    def reset(self) -> None:
        """Withdraw all blocks with the next step: the weights or the cache have changed."""
        self._withdraw = True

    def close(self) -> None:
        """The engine ends."""
        self._descriptions.close()

    def leave(self) -> StepPlan:
        """The plan that withdraws all blocks and ends the loads under way; inactive afterwards."""
        self._computing.leave()
        self._equal.leave()
        self._descriptions.close()
        self._client = self._lookups = self._admission = None  # none of them keeps the client
        return StepPlan(withdraw_all=True, loads=self._loads.leave())

    def _settle(self, seen: Seen) -> None:
        """The engine has emptied its prefix cache or changed its weights since the last look."""
        if seen.reset:
            self._withdraw = True
            self.adapters.forget_cached()
        if seen.unregistered or seen.renewed:
            self.publishing.withdrawn()
        if seen.renewed:
            if self._held is not None:
                self._held.clear()
            self._requests.renewed(self.model.keys, empty=seen.empty)

    def _attached(self, output: Any, publishing: Publishing) -> set[int]:
        """All blocks that the step may write to for the first time; it may contain others."""
        attached, given = self._loads.attached(output.num_scheduled_tokens)
        for new in output.scheduled_new_reqs:
            self._restart(new.req_id, new.block_ids, given)
            attached.update(*new.block_ids)
        cached = output.scheduled_cached_reqs
        resumed = cached.resumed_req_ids
        names, tables = publishing.given(cached.req_ids, cached.new_block_ids, resumed, attached)
        if resumed:  # vLLM gives a resumed one all of its blocks
            for request_id, block_ids in zip(names, tables, strict=True):
                if request_id in resumed:
                    self._restart(request_id, block_ids, given)
            grown = [request_id not in resumed for request_id in names]
            names, tables = list(compress(names, grown)), list(compress(tables, grown))
        if names:
            publishing.grow(names, tables)
        attached.update(_written_by_engine(output))
        attached.discard(0)  # vLLM's null block
        return attached

    def _restart(self, request_id: str, tables: Sequence[Sequence[int]], given: Mapping[str, object]) -> None:
        """``given``: requests whose blocks were allocated in this step, and none of them for a load of ours."""
        tracked = self._requests.by_id.get(request_id)
        self._loads.restarted(request_id, tracked, at_once=request_id in given)
        if tracked is not None:
            for table, blocks in zip(tracked.tables, tables, strict=True):
                table.restart(blocks, self._pool)
            tracked.since = self._step
            self.publishing.restarted(request_id, tracked)


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
