"""A small paged engine: scheduler, block pool and worker with vLLM's rules, and content that follows from the tokens.

It drives kvclient.vllm's scheduler and worker sides as vLLM 0.26 does: prefix cache with a new hash object for each
caching, hashes assigned when blocks are allocated and before they are computed, eviction inside schedule(), preemption,
loads in the background into blocks that are not hashed yet, steps launched ahead of the last one's results. Its runners
call the connector, and zero new blocks, in the order of vLLM's two model runners.

With several KV-cache groups it drives them as vLLM 0.32 does: one pool, a table for each group, blocks that left a
window freed in schedule(), loads that fail reported by request, which then loses all of its blocks.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

import numpy as np

import kvclient
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import Load
from kvclient.vllm.scheduler import SchedulerSide
from support.paged_pool import BLOCK_TOKENS, Block, Pool, block_bytes, next_token
from support.paged_step import NewRequest, Output, Request
from support.paged_tables import Tables, group_of, ids_of
from support.paged_worker import EngineWorker
from support.specs import small_spec


def _has(table: list[Block], load: Load) -> bool:
    """Whether a load is of this table's group."""
    return [block.block_id for block in table[load.depth : load.depth + len(load.blocks)]] == load.blocks


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
        """``windows``: for each KV-cache group the tokens that its attention reaches; 0: all; see ``group_of``."""
        self.random = random.Random(seed)
        self.name = name
        self._ahead = ahead
        self._batch = batch
        self._zeroes = zeroes  # as engines with mixed-precision or state-space caches
        spec = small_spec(model_id="paged", kv_dtype="uint8", head_size=64, block_tokens=BLOCK_TOKENS)
        options = ConnectorOptions(socket=socket, min_prefix_tokens=BLOCK_TOKENS, load=load)  # type: ignore[arg-type]
        self.client = kvclient.Client(socket, name=name)
        self.worker = EngineWorker(
            self.client, spec, options, self.random, name=name, blocks=blocks, runner=runner, windows=windows
        )
        self.pool = Pool(blocks)
        self._tables = Tables(self.pool, windows)
        self.scheduler = SchedulerSide(options)
        groups = [group_of(window) for window in windows]
        self.scheduler.attach(self.client, spec, [kvclient.Shard()], groups=groups, by_request=any(windows))
        self.scheduler.bind_pool(self.pool)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._launched: deque[Output] = deque()
        self._loaded: set[str] = set()
        self.accepted = 0  # blocks that a load gave
        self.wrong = 0  # of them, with other bytes than their tokens say
        # Runs that a step could have published, of requests that it did not look at
        self.passed_over = 0
        self.finished = 0
        self.preempted = 0
        self.asked_to_wait = 0
        self.dropped = 0  # requests that lost their blocks because a load failed
        self._number = 0

    def submit(self, tokens: list[int], output_tokens: int) -> None:
        self._number += 1
        request = Request(f"{self.name}-{self._number}", tokens, output_tokens)
        request.tables = self._tables.none()
        self.waiting.append(request)

    def step(self) -> None:
        output = self._schedule()
        self._launched.append(output)
        self.worker.execute(output)
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
        self._tables.step_starts()
        budget = 24
        for request in list(self.running):
            if request not in self.running or budget <= 0:
                continue
            known = request.num_tokens + request.num_output_placeholders
            count = min(known - request.num_computed_tokens, 16, budget)
            count = self._tables.chunk(request, request.num_computed_tokens, count)
            if count <= 0 or known >= request.target:
                continue
            if self.random.random() < 0.02 and len(self.running) > 1:
                self._preempt(request, output)
                continue
            new = self._grow(request, request.num_computed_tokens + count, output)
            if new is None:
                continue
            output.scheduled_cached_reqs.req_ids.append(request.request_id)
            output.scheduled_cached_reqs.new_block_ids.append(ids_of(new) if any(new) else None)
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
            hits = self._tables.none()
            local = 0
            if request.num_computed_tokens == 0:
                local = self._tables.cached_blocks(request)
                matched, background = self.scheduler.matched_tokens(request, local * BLOCK_TOKENS)
                if matched is None:
                    self.asked_to_wait += 1
                    skipped.append(request)
                    continue
                external = matched
            computed = request.num_computed_tokens or local * BLOCK_TOKENS + external
            count = 0 if background else min(request.num_tokens - computed, 16, budget)
            count = self._tables.chunk(request, computed, count)
            if request.num_computed_tokens:
                self._tables.leave_windows(request)
            else:
                hits = self._tables.hits(request, local, computed)
            need = [
                self._tables.wanted(group, len(held) + len(hit), computed + count)
                for group, (held, hit) in enumerate(zip(request.tables, hits, strict=True))
            ]
            in_pool = {block.block_id for hit in hits for block in hit if block.block_id and block.ref_cnt == 0}
            no_room = sum(blocks for _, blocks in need) > self.pool.free_count() - len(in_pool)
            if no_room or self._tables.too_early(hits) or (count == 0 and not background):
                self.waiting.appendleft(request)
                break
            for hit in hits:
                for block in hit:
                    if block.block_id:
                        self.pool.touch(block)
            for table, hit, (nulls, blocks) in zip(request.tables, hits, need, strict=True):
                table += hit + [self.pool.blocks[0]] * nulls + self.pool.take(blocks)
            if not background:
                self._tables.cache(request, computed + count)
            if external:
                self.scheduler.allocated(request, ids_of(request.tables), external)
            request.num_computed_tokens = computed
            if background:
                request.waiting_for_load = True
                skipped.append(request)
                continue
            ids = ids_of(request.tables)
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

    def _grow(self, request: Request, tokens: int, output: Output) -> list[list[Block]] | None:
        self._tables.leave_windows(request)
        need = [self._tables.wanted(group, len(table), tokens) for group, table in enumerate(request.tables)]
        while sum(blocks for _, blocks in need) > self.pool.free_count():
            victim = self.running[-1]
            self._preempt(victim, output)
            if victim is request:
                return None
        new = [[self.pool.blocks[0]] * nulls + self.pool.take(blocks) for nulls, blocks in need]
        for table, blocks in zip(request.tables, new, strict=True):
            table += blocks
        self._tables.cache(request, tokens)
        return new

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
        self._tables.give_back(request)
        request.num_computed_tokens = 0
        request.num_output_placeholders = 0
        request.num_in_flight_tokens = 0
        request.epoch += 1
        self.waiting.appendleft(request)

    def _end_load(self, request: Request) -> None:
        self._loaded.discard(request.request_id)
        request.waiting_for_load = False
        if request.num_computed_tokens == 0:
            self._tables.give_back(request)
        else:
            self._tables.cache(request, request.num_computed_tokens)

    def _check_passed_over(self) -> None:
        side = self.scheduler
        if side._loads._waited:
            return
        publishing = side.publishing
        for request_id, tracked in side._requests.by_id.items():
            looked_at = publishing.is_considered(request_id) or tracked.loading or not tracked.shared
            if looked_at or tracked.since == side._step:
                continue
            before = [table.next_block for table in tracked.tables]
            runs = [run for run, _ in publishing.runs(tracked, publishing.unsure(), hashed=False)]
            for table, next_block in zip(tracked.tables, before, strict=True):
                table.next_block = next_block
            # The last block is published when the request is given another one, or ends.
            self.passed_over += sum(run.depth < len(tracked.tables[0].blocks) - 1 for run in runs)

    # ---- results ----

    def _update(self, output: Output) -> None:
        results = output.results
        done, waited = results.done, results.waited
        failed, dropped = results.failed_blocks, results.failed_requests
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
        # Else many failures in a row, as on a busy machine, end the imports for a minute
        self.scheduler.failed_loads.forget()

    def _finish_step(self, request: Request, count: int) -> None:
        request.num_in_flight_tokens -= count
        # The step's token, if it computed the last one known when it was launched.
        if (
            request.num_output_placeholders
            and request.num_computed_tokens - request.num_in_flight_tokens >= request.num_tokens
        ):
            request.num_output_placeholders -= 1
            request.all_token_ids.append(next_token(request.all_token_ids))
            self._tables.cache(request, request.num_computed_tokens)
            if request.num_tokens >= request.target:
                self.running.remove(request)
                self._tables.leave_windows(request)
                self.scheduler.finished(request)
                self._tables.give_back(request)
                self.finished += 1

    def _check_loads(self, done: set[str], failed: set[int], dropped: set[str]) -> None:
        by_id = {request.request_id: request for request in [*self.waiting, *self.running]}
        for request_id in done:
            loads = self.worker.loads_of.pop(request_id)
            for load in loads if request_id not in dropped else ():
                group = next(number for number, table in enumerate(by_id[request_id].tables) if _has(table, load))
                for offset, block in enumerate(load.blocks):
                    if block in failed:
                        break
                    tokens = by_id[request_id].all_token_ids[: (load.depth + offset + 1) * BLOCK_TOKENS]
                    content = block_bytes(tokens, group)
                    self.accepted += 1
                    self.wrong += not np.array_equal(self.worker.bytes[block], content)
                    # It may be published before the request is computed on: where the pool has no
                    # blocks for the request's next step
                    self.worker.loaded_content[load.keys[0][offset]] = content

    def _invalidate(
        self, request: Request, failed: set[int], done: set[str], marked: set[int], starts: dict[str, int]
    ) -> bool:
        """As vLLM: computed tokens end at the first failed block, which leaves the prefix cache with all behind it.

        A block that several requests share is computed again by the first of them; the others do their step again.
        """
        self.worker.to_recompute |= failed
        if not failed or not (request.request_id in done or request in self.running):
            return False
        # Else blocks at the end of what was loaded would count as not computed yet, and their
        # failure as nothing.
        assert not (request.request_id in done and request.request_id in starts)
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
