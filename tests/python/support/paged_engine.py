"""A small paged engine: scheduler, block pool and worker with vLLM's rules, and content that follows from the tokens.

It drives kvclient.vllm's scheduler and worker sides as vLLM 0.26 does: prefix cache with a new hash object for each
caching, hashes assigned when blocks are allocated and before they are computed, eviction inside schedule(), preemption,
loads in the background into blocks that are not hashed yet, steps launched ahead of the last one's results. Its runners
call the connector, and zero new blocks, in the order of vLLM's two model runners.

With several KV-cache groups it drives them as vLLM 0.32 does: one pool, a table for each group, blocks that left a
window freed in schedule(), loads that fail reported by request, which then loses all of its blocks.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import kvclient
from kvclient.vllm.groups import KvGroup
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import Load
from kvclient.vllm.runner import before_each_step
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.stores import InPlaceMemory
from kvclient.vllm.worker import WorkerSide
from support.specs import small_spec

BLOCK_TOKENS = 4
BLOCK_BYTES = 256


@dataclass
class Block:
    block_id: int
    block_hash: bytes | None = None
    ref_cnt: int = 0


class Pool:
    """As vLLM's BlockPool: 0 is the null block; free blocks keep their hash until they are reused, oldest first."""

    def __init__(self, count: int) -> None:
        self.enable_caching = True
        self.num_gpu_blocks = count
        self.blocks = [Block(i) for i in range(count)]
        self.cached_block_hash_to_block: dict[bytes, dict[int, Block]] = {}
        self._free: OrderedDict[int, Block] = OrderedDict((i, self.blocks[i]) for i in range(1, count))
        self.taken: list[int] = []  # since the last step

    def get_num_free_blocks(self) -> int:
        return len(self._free)

    def free_count(self) -> int:
        return len(self._free)

    def cached(self, content: bytes) -> Block | None:
        blocks = self.cached_block_hash_to_block.get(content)
        return next(iter(blocks.values())) if blocks else None

    def touch(self, block: Block) -> None:
        if block.ref_cnt == 0:
            del self._free[block.block_id]
        block.ref_cnt += 1

    def take(self, count: int) -> list[Block]:
        taken = [self._free.popitem(last=False)[1] for _ in range(count)]
        self.taken += [block.block_id for block in taken]
        for block in taken:
            self.evict(block)
            block.ref_cnt = 1
        return taken

    def evict(self, block: Block) -> None:
        if block.block_hash is not None:
            same = self.cached_block_hash_to_block[block.block_hash]
            del same[block.block_id]
            if not same:
                del self.cached_block_hash_to_block[block.block_hash]
            block.block_hash = None

    def cache(self, block: Block, content: bytes) -> None:
        assert block.block_hash is None
        block.block_hash = bytes(bytearray(content))  # a new object each time
        self.cached_block_hash_to_block.setdefault(block.block_hash, {})[block.block_id] = block

    def give_back(self, blocks: list[Block]) -> None:
        for block in reversed(blocks):
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                self._free[block.block_id] = block

    def reset(self) -> None:
        for block in self.blocks:
            block.block_hash = None
        self.cached_block_hash_to_block = {}


class Request:
    def __init__(self, request_id: str, tokens: list[int], output_tokens: int) -> None:
        self.request_id = request_id
        self.prompt_token_ids = list(tokens)
        self.all_token_ids = list(tokens)
        self.target = len(tokens) + output_tokens
        self.num_computed_tokens = 0
        self.num_output_placeholders = 0
        self.num_in_flight_tokens = 0
        self.skip_reading_prefix_cache = False
        self.prompt_embeds = None
        self.mm_features: list[Any] = []
        self.lora_request = None
        self.cache_salt = None
        # For each group; the null block where the window has left.
        self.tables: list[list[Block]] = [[]]
        self.waiting_for_load = False
        self.was_scheduled = False
        self.epoch = 0  # of preemptions: results of steps before the last one are dropped

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def blocks(self) -> list[Block]:
        """Of the first group."""
        return self.tables[0]

    @blocks.setter
    def blocks(self, blocks: list[Block]) -> None:
        self.tables[0] = blocks

    def content(self, index: int, group: int = 0) -> bytes:
        """What the engine's prefix cache knows a block by."""
        return hashlib.sha256(f"{group}:{self.all_token_ids[: (index + 1) * BLOCK_TOKENS]}".encode()).digest()


@dataclass
class NewRequest:
    req_id: str
    block_ids: tuple[list[int], ...]


@dataclass
class Cached:
    req_ids: list[str] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)


@dataclass
class Output:
    scheduled_new_reqs: list[NewRequest] = field(default_factory=list)
    scheduled_cached_reqs: Cached = field(default_factory=Cached)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    plan: Any = None
    kv_connector_metadata: Any = None
    new_block_ids_to_zero: list[int] | None = None
    #: Request, its blocks for each group, first token computed, how many, the request's epoch.
    work: list[tuple[Request, list[list[Block]], int, int, int]] = field(default_factory=list)


def block_bytes(tokens: list[int], group: int = 0) -> np.ndarray:
    """What a group's block holds whose prefix, itself included, is ``tokens``: [BLOCK_BYTES]."""
    return np.frombuffer(hashlib.shake_128(f"{group}:{tokens}".encode()).digest(BLOCK_BYTES), np.uint8)


def _ids(tables: list[list[Block]]) -> tuple[list[int], ...]:
    return tuple([block.block_id for block in table] for table in tables)


def _has(table: list[Block], load: Load) -> bool:
    """Whether a load is of this table's group."""
    return [block.block_id for block in table[load.depth : load.depth + len(load.blocks)]] == load.blocks


def next_token(tokens: list[int]) -> int:
    """The token that follows: a function of those before it, as with greedy sampling."""
    return hashlib.sha256(str(tokens).encode()).digest()[0] % 50


class V1Runner:
    """The order of vllm/v1/worker/gpu_model_runner.py (0.33): ``execute_model`` calls ``handle_preemptions`` (3937),
    then ``_update_states`` (3945), which zeroes new blocks (1205) and copies blocks (1207). Since 0.30, the mixin of
    connectors calls ``start_load_kv`` after the forward pass unless a load is waited for.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def execute_model(self, output: Output) -> None:
        self._engine.handle_preemptions(output)
        self._engine.zero(output)
        self._engine.run(output)


class V2Runner(V1Runner):
    """The order of vllm/v1/worker/gpu/model_runner.py (0.33): ``execute_model`` calls ``update_requests`` (1781), which
    zeroes new blocks (1295) and copies blocks (1300), then the connector's ``pre_forward`` (2056, 2081; ``no_forward``
    at 1794), which calls ``handle_preemptions`` and, before the forward pass, loads that are waited for
    (gpu/kv_connector.py:82, 92); the others begin after it.
    """

    def execute_model(self, output: Output) -> None:
        self._engine.zero(output)
        self._engine.handle_preemptions(output)
        self._engine.run(output)


class DawdlingClient:
    """A client that often waits between finding and importing, so that the owner has time to reuse the blocks."""

    def __init__(self, client: kvclient.Client, dice: random.Random) -> None:
        self._client = client
        self._dice = dice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def find(self, keys: kvclient.BlockKeys, **options: Any) -> kvclient.Match:
        match = self._client.find(keys, **options)
        if self._dice.random() < 0.3:
            time.sleep(0.003)
        return match


class Engine:
    """One engine; ``step()`` schedules one step and takes the results of one, up to ``ahead`` steps later."""

    def __init__(
        self,
        socket: str,
        name: str,
        seed: int,
        *,
        blocks: int = 48,
        ahead: int = 1,
        load: str = "async",
        batch: int = 4,
        runner: str = "v1",
        zeroes: bool = False,
        windows: Sequence[int] = (0,),
    ) -> None:
        """``windows``: for each KV-cache group the tokens that its attention reaches; 0: all."""
        self._windows = list(windows)
        self.random = random.Random(seed)
        self.name = name
        self._ahead = ahead
        self._batch = batch
        self._zeroes = zeroes  # as engines with mixed-precision or state-space caches
        self.model_runner = (V2Runner if runner == "v2" else V1Runner)(self)
        before_each_step(self, self._before_step)
        spec = small_spec(model_id="paged", kv_dtype="uint8", head_size=64, block_tokens=BLOCK_TOKENS)
        options = ConnectorOptions(socket=socket, min_prefix_tokens=BLOCK_TOKENS, load=load)  # type: ignore[arg-type]
        self.client = kvclient.Client(socket, name=name)
        model = self.client.declare_model(spec)
        region = self.client.allocate_region(model, kvclient.Geometry.contiguous(blocks, BLOCK_BYTES), name=name)
        self.bytes = region.segment().reshape(blocks, BLOCK_BYTES)
        self.pool = Pool(blocks)
        self.scheduler = SchedulerSide(options)
        groups = [KvGroup(window) for window in self._windows]
        self.scheduler.attach(self.client, spec, [kvclient.Shard()], groups=groups, by_request=any(self._windows))
        self._keys_of = [kvclient.ShardKeys(spec, kvclient.Shard(kv_group=group)) for group in range(len(groups))]
        self.scheduler.bind_pool(self.pool)
        self.worker = WorkerSide(options)
        self.region = region
        self._spec = spec
        dawdling: Any = DawdlingClient(self.client, self.random)
        self.worker.serve(InPlaceMemory(dawdling, region, options, self.worker.counters), spec)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._launched: deque[Output] = deque()
        self._loaded: set[str] = set()
        self._loads_of: dict[str, list[Load]] = {}
        # Failed blocks: requests that share them may read them too early, as in vLLM
        self._to_recompute: set[int] = set()
        self._content_of: dict[kvclient.BlockKey, np.ndarray] = {}  # of blocks computed here
        self._loaded_content: dict[kvclient.BlockKey, np.ndarray] = {}
        self.accepted = 0  # blocks that a load gave
        self.wrong = 0  # of them, with other bytes than their tokens say
        self.published_wrong = 0  # blocks published with other bytes than their key says
        # Blocks published that were loaded, before any request was computed on from them, and those
        # of them with other bytes
        self.published_loaded = 0
        self.published_loaded_wrong = 0
        self.written_readable = 0  # blocks written while others could read them
        # Runs that a step could have published, of requests that it did not look at
        self.passed_over = 0
        self.read_wrong = 0  # blocks of a request's prefix that were wrong when it was computed on
        self.finished = 0
        self.preempted = 0
        self.dropped = 0  # requests that lost their blocks because a load failed
        self._number = 0

    def submit(self, tokens: list[int], output_tokens: int) -> None:
        self._number += 1
        request = Request(f"{self.name}-{self._number}", tokens, output_tokens)
        request.tables = self._no_blocks()
        self.waiting.append(request)

    def step(self) -> None:
        output = self._schedule()
        self._launched.append(output)
        self._execute(output)
        while len(self._launched) > self._ahead:
            self._update(self._launched.popleft())

    def drain(self) -> None:
        for _ in range(10_000):
            if not self.waiting and not self.running and not self._launched:
                return
            self.step()
            if not self.waiting and not self.running:
                while self._launched:
                    self._update(self._launched.popleft())
        raise AssertionError("requests hang")

    # ---- scheduler ----

    def _schedule(self) -> Output:
        output = Output()
        budget = 24
        for request in list(self.running):
            if request not in self.running or budget <= 0:
                continue
            known = request.num_tokens + request.num_output_placeholders
            count = min(known - request.num_computed_tokens, 16, budget)
            if count <= 0 or known >= request.target:
                continue
            if self.random.random() < 0.02 and len(self.running) > 1:
                self._preempt(request, output)
                continue
            new = self._grow(request, request.num_computed_tokens + count, output)
            if new is None:
                continue
            output.scheduled_cached_reqs.req_ids.append(request.request_id)
            output.scheduled_cached_reqs.new_block_ids.append(_ids(new) if any(new) else None)
            self._launch(request, count, output)
            budget -= count
        skipped: list[Request] = []
        while self.waiting and budget > 0 and len(self.running) < self._batch:
            request = self.waiting.popleft()
            if request.waiting_for_load:
                if request.request_id not in self._loaded:
                    skipped.append(request)
                    continue
                self._end_load(request)
            external, background = 0, False
            hits = self._no_blocks()
            local = 0
            if request.num_computed_tokens == 0:
                local = self._cached_blocks(request)
                external, background = self.scheduler.matched_tokens(request, local * BLOCK_TOKENS)
            computed = request.num_computed_tokens or local * BLOCK_TOKENS + external
            count = 0 if background else min(request.num_tokens - computed, 16, budget)
            if request.num_computed_tokens:
                self._leave_windows(request)
            else:
                hits = self._hits(request, local, computed)
            need = [
                max(0, -(-(computed + count) // BLOCK_TOKENS) - len(held) - len(hit))
                for held, hit in zip(request.tables, hits, strict=True)
            ]
            in_pool = {block.block_id for hit in hits for block in hit if block.block_id and block.ref_cnt == 0}
            if sum(need) > self.pool.free_count() - len(in_pool):
                self.waiting.appendleft(request)
                break
            for hit in hits:
                for block in hit:
                    if block.block_id:
                        self.pool.touch(block)
            for table, hit, wanted in zip(request.tables, hits, need, strict=True):
                table += hit + self.pool.take(wanted)
            if not background:
                self._cache(request, computed + count)
            if external:
                self.scheduler.allocated(request, _ids(request.tables), external)
            request.num_computed_tokens = computed
            if background:
                request.waiting_for_load = True
                skipped.append(request)
                continue
            ids = _ids(request.tables)
            if request.was_scheduled:
                output.scheduled_cached_reqs.req_ids.append(request.request_id)
                output.scheduled_cached_reqs.resumed_req_ids.add(request.request_id)
                output.scheduled_cached_reqs.new_block_ids.append(ids)
            else:
                output.scheduled_new_reqs.append(NewRequest(request.request_id, ids))
            request.was_scheduled = True
            self.running.append(request)
            self._launch(request, count, output)
            budget -= count
        self.waiting.extendleft(reversed(skipped))
        taken, self.pool.taken = self.pool.taken, []
        output.new_block_ids_to_zero = taken if self._zeroes else None
        output.plan = output.kv_connector_metadata = self.scheduler.plan(output)
        self._check_passed_over()
        for request, _, _, count, _ in output.work:
            request.num_computed_tokens += count
            request.num_in_flight_tokens += count
            if request.num_computed_tokens >= request.num_tokens + request.num_output_placeholders:
                request.num_output_placeholders += 1
        return output

    def _launch(self, request: Request, count: int, output: Output) -> None:
        output.num_scheduled_tokens[request.request_id] = count
        tables = [list(table) for table in request.tables]
        output.work.append((request, tables, request.num_computed_tokens, count, request.epoch))

    def _no_blocks(self) -> list[list[Block]]:
        return [[] for _ in self._windows]

    def _first(self, group: int, tokens: int) -> int:
        """The first block that a group needs to go on after ``tokens``."""
        window = self._windows[group]
        return max(0, tokens - window + 1) // BLOCK_TOKENS if window else 0

    def _cached_blocks(self, request: Request) -> int:
        """How many blocks of the prefix the engine itself can begin after: all groups have what they need there."""
        for blocks in range((request.num_tokens - 1) // BLOCK_TOKENS, 0, -1):
            if all(
                self.pool.cached(request.content(index, group))
                for group in range(len(self._windows))
                for index in range(self._first(group, blocks * BLOCK_TOKENS), blocks)
            ):
                return blocks
        return 0

    def _hits(self, request: Request, local: int, computed: int) -> list[list[Block]]:
        """The engine's own blocks for a request that is to go on after ``computed`` tokens; null before windows."""
        hits = self._no_blocks()
        for group, table in enumerate(hits):
            first = self._first(group, computed)
            table += [self.pool.blocks[0]] * first
            for index in range(first, local):
                block = self.pool.cached(request.content(index, group))
                assert block is not None
                table.append(block)
        return hits

    def _leave_windows(self, request: Request) -> None:
        """Free the blocks that no window reaches any more, once the steps that read them have ended."""
        for group, table in enumerate(request.tables):
            first = self._first(group, max(0, request.num_computed_tokens - request.num_in_flight_tokens))
            first = min(first, len(table))
            self.pool.give_back([block for block in table[:first] if block.block_id])
            table[:first] = [self.pool.blocks[0]] * first

    def _grow(self, request: Request, tokens: int, output: Output) -> list[list[Block]] | None:
        self._leave_windows(request)
        need = [max(0, -(-tokens // BLOCK_TOKENS) - len(table)) for table in request.tables]
        while sum(need) > self.pool.free_count():
            victim = self.running[-1]
            self._preempt(victim, output)
            if victim is request:
                return None
        new = [self.pool.take(wanted) for wanted in need]
        for table, blocks in zip(request.tables, new, strict=True):
            table += blocks
        self._cache(request, tokens)
        return new

    def _cache(self, request: Request, tokens: int) -> None:
        """Hashes are given when blocks are allocated, before they are computed; as far as the tokens are known."""
        for group, table in enumerate(request.tables):
            for index in range(min(tokens, request.num_tokens) // BLOCK_TOKENS):
                if table[index].block_id and table[index].block_hash is None:
                    self.pool.cache(table[index], request.content(index, group))

    def _give_back(self, request: Request) -> None:
        for table in request.tables:
            self.pool.give_back([block for block in table if block.block_id])
        request.tables = self._no_blocks()

    def _preempt(self, request: Request, output: Output) -> None:
        self.preempted += 1
        self.running.remove(request)
        output.work = [each for each in output.work if each[0] is not request]
        output.num_scheduled_tokens.pop(request.request_id, None)
        cached = output.scheduled_cached_reqs
        if request.request_id in cached.req_ids:
            at = cached.req_ids.index(request.request_id)
            del cached.req_ids[at], cached.new_block_ids[at]
            cached.resumed_req_ids.discard(request.request_id)
        output.scheduled_new_reqs = [new for new in output.scheduled_new_reqs if new.req_id != request.request_id]
        self._give_back(request)
        request.num_computed_tokens = 0
        request.num_output_placeholders = 0
        request.num_in_flight_tokens = 0
        request.epoch += 1
        self.waiting.appendleft(request)

    def _end_load(self, request: Request) -> None:
        self._loaded.discard(request.request_id)
        request.waiting_for_load = False
        if request.num_computed_tokens == 0:
            self._give_back(request)
        else:
            self._cache(request, request.num_computed_tokens)

    # ---- worker ----

    def _execute(self, output: Output) -> None:
        """Runs when it is launched, as on a stream: in order, whatever the scheduler knows by then."""
        self._check_publishes(output)
        self.model_runner.execute_model(output)

    def _before_step(self, plan: Any) -> None:
        self.worker.before_step(plan)

    def handle_preemptions(self, output: Output) -> None:
        self.worker.before_step(output.plan)
        self.worker.start_early_loads(output.plan)

    def zero(self, output: Output) -> None:
        """Half of the bytes: what a peer reads while a block is zeroed."""
        for block in output.new_block_ids_to_zero or ():
            self._written(block)
            self.bytes[block][: BLOCK_BYTES // 2] = 0

    def _written(self, block: int) -> None:
        generation = self.region.current_generation(block)
        self.written_readable += generation > 0 and generation % 2 == 0

    def run(self, output: Output) -> None:
        waits = any(load.wait for load in output.plan.loads)
        if waits:
            self.worker.start_loads(output.plan)
        self._forward(output)
        self.worker.start_loads(output.plan)

    def _forward(self, output: Output) -> None:
        for load in output.plan.loads:
            self._loads_of.setdefault(load.request_id, []).append(load)
        certain = not any(load.wait for load in output.plan.loads)
        for request, tables, start, count, _ in output.work:
            tokens = list(request.all_token_ids)
            # Sampled by the step before, still on its way to the scheduler
            while len(tokens) < start + count:
                tokens.append(next_token(tokens))
            full = tokens[: (start + count) // BLOCK_TOKENS * BLOCK_TOKENS]
            names = kvclient.KeyChain(self._spec).extend(full)
            for group, blocks in enumerate(tables):
                for index, key in enumerate(self._keys(group, names)):
                    self._content_of.setdefault(key, block_bytes(tokens[: (index + 1) * BLOCK_TOKENS], group))
                # Blocks before the window are not read, and are not there
                for index in range(self._first(group, start), (start + count - 1) // BLOCK_TOKENS + 1):
                    self._compute(tokens, group, blocks, index, start, certain)

    def _keys(self, group: int, names: kvclient.BlockKeys) -> kvclient.BlockKeys:
        if len(self._windows) == 1:
            return names
        keys = kvclient.BlockKeys()
        self._keys_of[group].extend(keys, names)
        return keys

    def _compute(
        self, tokens: list[int], group: int, blocks: list[Block], index: int, start: int, certain: bool
    ) -> None:
        # Of all tokens known: requests that share a block may compute parts of it, of the same
        # content.
        content = block_bytes(tokens[: (index + 1) * BLOCK_TOKENS], group)
        block = blocks[index].block_id
        memory = self.bytes[block]
        if (index + 1) * BLOCK_TOKENS <= start:
            sound = certain and block not in self._to_recompute
            self.read_wrong += sound and not np.array_equal(memory, content)
        else:
            self._written(block)
            memory[:] = 0
            memory[:] = content
            self._to_recompute.discard(block)

    def _check_passed_over(self) -> None:
        side = self.scheduler
        if side._waited:
            return
        publishing = side.publishing
        for request_id, tracked in side._tracked.items():
            looked_at = publishing.is_considered(request_id) or tracked.loading or not tracked.shared
            if looked_at or tracked.since == side._step:
                continue
            before = [table.next_block for table in tracked.tables]
            runs = [run for run, _ in publishing.runs(tracked, publishing.unsure(), hashed=False)]
            for table, next_block in zip(tracked.tables, before, strict=True):
                table.next_block = next_block
            # The last block is published when the request is given another one, or ends.
            self.passed_over += sum(run.depth < len(tracked.tables[0].blocks) - 1 for run in runs)

    def _check_publishes(self, output: Output) -> None:
        for run in output.plan.publish:
            for block, key in zip(run.blocks, run.keys[0], strict=True):
                computed, loaded = self._content_of.get(key), self._loaded_content.get(key)
                if computed is None and loaded is not None:
                    self.published_loaded += 1
                    self.published_loaded_wrong += not np.array_equal(self.bytes[block], loaded)
                else:
                    self.published_wrong += computed is None or not np.array_equal(self.bytes[block], computed)

    # ---- results ----

    def _update(self, output: Output) -> None:
        done = self.worker.finished_loads()
        report = self.worker.take_report()
        failed = self.worker.take_failed_blocks()
        dropped = self.worker.take_failed_requests()
        waited = report.waited if report else set()
        self._check_loads(done | waited, failed, dropped)
        self.dropped += len(dropped)
        for request in self.waiting:
            if request.request_id in dropped:
                request.num_computed_tokens = 0
        starts = {work[0].request_id: work[2] for work in output.work}
        marked: set[int] = set()
        affected = set()
        for request in [*self.waiting, *self.running]:
            if self._invalidate(request, failed, done, marked, starts):
                affected.add(request.request_id)
        for request, _, _, count, epoch in output.work:
            if request in self.running and request.epoch == epoch and request.request_id not in affected:
                self._finish_step(request, count)
        self._loaded |= done
        self.scheduler.failed_requests(dropped)
        if failed:
            self.scheduler.failed(failed)
        self.scheduler.loaded(done, waited)

    def _finish_step(self, request: Request, count: int) -> None:
        request.num_in_flight_tokens -= count
        # The step's token, if it computed the last one known when it was launched.
        if (
            request.num_output_placeholders
            and request.num_computed_tokens - request.num_in_flight_tokens >= request.num_tokens
        ):
            request.num_output_placeholders -= 1
            request.all_token_ids.append(next_token(request.all_token_ids))
            self._cache(request, request.num_computed_tokens)
            if request.num_tokens >= request.target:
                self.running.remove(request)
                self._leave_windows(request)
                self.scheduler.finished(request)
                self._give_back(request)
                self.finished += 1

    def _check_loads(self, done: set[str], failed: set[int], dropped: set[str]) -> None:
        by_id = {request.request_id: request for request in [*self.waiting, *self.running]}
        for request_id in done:
            loads = self._loads_of.pop(request_id)
            for load in loads if request_id not in dropped else ():
                group = next(number for number, table in enumerate(by_id[request_id].tables) if _has(table, load))
                for offset, block in enumerate(load.blocks):
                    if block in failed:
                        break
                    tokens = by_id[request_id].all_token_ids[: (load.depth + offset + 1) * BLOCK_TOKENS]
                    content = block_bytes(tokens, group)
                    self.accepted += 1
                    self.wrong += not np.array_equal(self.bytes[block], content)
                    # It may be published before the request is computed on: where the pool has no
                    # blocks for the request's next step
                    self._loaded_content[load.keys[0][offset]] = content

    def _invalidate(
        self, request: Request, failed: set[int], done: set[str], marked: set[int], starts: dict[str, int]
    ) -> bool:
        """As vLLM: computed tokens end at the first failed block, which leaves the prefix cache with all behind it.

        A block that several requests share is computed again by the first of them; the others do their step again.
        """
        self._to_recompute |= failed
        if not failed or not (request.request_id in done or request in self.running):
            return False
        computed = starts.get(request.request_id, request.num_computed_tokens)
        hit = False
        for index, block in enumerate(request.blocks[: -(-computed // BLOCK_TOKENS)]):
            if block.block_id not in failed:
                continue
            hit = True
            if block.block_id in marked:
                continue
            marked.add(block.block_id)
            computed = index * BLOCK_TOKENS
            for behind in request.blocks[index:]:
                self.pool.evict(behind)
            break
        if hit:
            request.num_computed_tokens = computed
            request.num_in_flight_tokens = request.num_output_placeholders = 0
        return hit


class RandomTraffic:
    """An engine under requests that share prefixes with those of other processes that have the same ``family`` seed."""

    def __init__(
        self,
        socket: str,
        name: str,
        seed: int,
        ahead: int,
        load: str,
        blocks: int,
        runner: str,
        zeroes: bool,
        windows: Sequence[int],
    ) -> None:
        self.engine = Engine(
            socket, name, seed, ahead=ahead, load=load, blocks=blocks, runner=runner, zeroes=zeroes, windows=windows
        )
        family = random.Random(7)
        self._prefixes = [[family.randrange(50) for _ in range(4 * BLOCK_TOKENS)] for _ in range(12)]

    def run(self, steps: int) -> dict[str, int]:
        engine, dice = self.engine, self.engine.random
        for _ in range(steps):
            while len(engine.waiting) < 3:
                tokens = list(dice.choice(self._prefixes))
                for _ in range(dice.randrange(3)):
                    tokens += self._prefixes[dice.randrange(3)][: dice.randrange(1, 3 * BLOCK_TOKENS)]
                engine.submit(tokens, dice.randrange(1, 14))
            engine.step()
            if dice.random() < 0.001:
                for request in list(engine.running):
                    engine._preempt(request, Output())
                engine.pool.reset()
        engine.drain()
        stats = engine.client.stats()
        return {
            "finished": engine.finished,
            "accepted": engine.accepted,
            "wrong": engine.wrong,
            "read_wrong": engine.read_wrong,
            "published_wrong": engine.published_wrong,
            "published_loaded": engine.published_loaded,
            "published_loaded_wrong": engine.published_loaded_wrong,
            "written_readable": engine.written_readable,
            "passed_over": engine.passed_over,
            "preempted": engine.preempted,
            "dropped": engine.dropped,
            "failed": stats.blocks_failed,
            "imported": stats.blocks_imported,
            "published": stats.blocks_published,
        }


def make(
    socket: str,
    name: str,
    seed: int,
    ahead: int,
    load: str,
    blocks: int,
    runner: str,
    zeroes: bool,
    windows: Sequence[int] = (0,),
) -> RandomTraffic:
    return RandomTraffic(socket, name, seed, ahead, load, blocks, runner, zeroes, windows)
