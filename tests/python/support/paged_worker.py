"""The worker of the small engine: memory, its two runners, and checks of every byte that is read and published."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import kvclient
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import Load
from kvclient.vllm.runner import before_each_step
from kvclient.vllm.stores import InPlaceMemory
from kvclient.vllm.worker import WorkerSide
from support.paged_pool import BLOCK_BYTES, BLOCK_TOKENS, Block, block_bytes, next_token
from support.paged_step import Output
from support.paged_tables import STATE, first_block


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


class V1Runner:
    """The order of vllm/v1/worker/gpu_model_runner.py (0.33): ``execute_model`` calls ``handle_preemptions`` (3937),
    then ``_update_states`` (3945), which zeroes new blocks (1205) and copies blocks (1207), and
    ``preprocess_mamba`` (0.32: 4091), which copies states to the blocks that they go on in. Since 0.30, the mixin of
    connectors calls ``start_load_kv`` after the forward pass unless a load is waited for.
    """

    def __init__(self, worker: EngineWorker) -> None:
        self._worker = worker

    def execute_model(self, output: Output) -> None:
        self._worker.handle_preemptions(output)
        self._worker.zero(output)
        self._worker.copy_states(output)
        self._worker.run(output)


class V2Runner(V1Runner):
    """The order of vllm/v1/worker/gpu/model_runner.py (0.33): ``execute_model`` calls ``update_requests`` (1781), which
    zeroes new blocks (1295) and copies blocks (1300), ``preprocess_state`` (0.32: 1820), which copies states to the
    blocks that they go on in, then the connector's ``pre_forward`` (2056, 2081; ``no_forward`` at 1794), which calls
    ``handle_preemptions`` and, before the forward pass, loads that are waited for (gpu/kv_connector.py:82, 92); the
    others begin after it.
    """

    def execute_model(self, output: Output) -> None:
        self._worker.zero(output)
        self._worker.copy_states(output)
        self._worker.handle_preemptions(output)
        self._worker.run(output)


class EngineWorker:
    """The memory of one engine, with a WorkerSide."""

    def __init__(
        self,
        client: kvclient.Client,
        spec: kvclient.ModelSpec,
        options: ConnectorOptions,
        dice: random.Random,
        *,
        name: str,
        blocks: int,
        runner: str,
        windows: Sequence[int],
    ) -> None:
        """``windows``: for each KV-cache group the tokens that its attention reaches; 0: all."""
        self._windows = list(windows)
        self._spec = spec
        self._keys_of = [kvclient.ShardKeys(spec, kvclient.Shard(kv_group=group)) for group in range(len(windows))]
        model = client.declare_model(spec)
        self.region = client.allocate_region(model, kvclient.Geometry.contiguous(blocks, BLOCK_BYTES), name=name)
        self.bytes = self.region.segment().reshape(blocks, BLOCK_BYTES)
        self.side = WorkerSide(options)
        dawdling: Any = DawdlingClient(client, dice)
        self.side.serve(InPlaceMemory(dawdling, self.region, options, self.side.counters), spec)
        self.model_runner = (V2Runner if runner == "v2" else V1Runner)(self)
        before_each_step(self, self._before_step)
        self.loads_of: dict[str, list[Load]] = {}
        # Failed blocks: requests that share them may read them too early, as in vLLM
        self.to_recompute: set[int] = set()
        self._content_of: dict[kvclient.BlockKey, np.ndarray] = {}  # of blocks computed here
        self.loaded_content: dict[kvclient.BlockKey, np.ndarray] = {}
        self.published_wrong = 0  # blocks published with other bytes than their key says
        # Blocks published that were loaded, before any request was computed on from them, and those
        # of them with other bytes
        self.published_loaded = 0
        self.published_loaded_wrong = 0
        self.written_readable = 0  # blocks written while others could read them
        self.read_wrong = 0  # blocks of a request's prefix that were wrong when it was computed on

    def execute(self, output: Output) -> None:
        """Runs when it is launched, as on a stream: in order, whatever the scheduler knows by then."""
        self._check_publishes(output)
        self.model_runner.execute_model(output)
        # As vLLM's runners: what a step reports was known when it ended. A load that a later step
        # began is not reported with it, since the scheduler takes the step's tokens from what a
        # request of that step has computed.
        results = output.results
        results.done = self.side.finished_loads()
        report = self.side.take_report()
        results.waited = report.waited if report else set()
        results.failed_blocks = self.side.take_failed_blocks()
        results.failed_requests = self.side.take_failed_requests()

    def _before_step(self, plan: Any) -> None:
        self.side.before_step(plan)

    def handle_preemptions(self, output: Output) -> None:
        self.side.before_step(output.plan)
        self.side.start_early_loads(output.plan)

    def zero(self, output: Output) -> None:
        """Half of the bytes: what a peer reads while a block is zeroed."""
        for block in output.new_block_ids_to_zero or ():
            self._written(block)
            self.bytes[block][: BLOCK_BYTES // 2] = 0

    def copy_states(self, output: Output) -> None:
        """A request whose state goes on in another block than the last step's: as vLLM's ``preprocess_mamba``."""
        for _, tables, start, count, _ in output.work:
            before, now = (start - 1) // BLOCK_TOKENS, (start + count - 1) // BLOCK_TOKENS
            for group, blocks in enumerate(tables):
                if self._windows[group] == STATE and start and before != now:
                    self._written(blocks[now].block_id)
                    self.bytes[blocks[now].block_id] = self.bytes[blocks[before].block_id]

    def _written(self, block: int) -> None:
        generation = self.region.current_generation(block)
        self.written_readable += generation > 0 and generation % 2 == 0

    def run(self, output: Output) -> None:
        waits = any(load.wait for load in output.plan.loads)
        if waits:
            self.side.start_loads(output.plan)
        self._forward(output)
        self.side.start_loads(output.plan)

    def _forward(self, output: Output) -> None:
        for load in output.plan.loads:
            self.loads_of.setdefault(load.request_id, []).append(load)
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
                if self._windows[group] == STATE:
                    self._go_on(tokens, group, blocks, start, start + count)
                    continue
                # Blocks before the window are not read, and are not there
                for index in range(first_block(self._windows[group], start), (start + count - 1) // BLOCK_TOKENS + 1):
                    self._compute(tokens, group, blocks, index, start, certain)

    def _go_on(self, tokens: list[int], group: int, blocks: list[Block], start: int, end: int) -> None:
        """The state after ``start`` tokens becomes the one after ``end``, in place."""
        block = blocks[(end - 1) // BLOCK_TOKENS].block_id
        self.read_wrong += start > 0 and not np.array_equal(self.bytes[block], block_bytes(tokens[:start], group))
        self._written(block)
        self.bytes[block] = 0
        self.bytes[block] = block_bytes(tokens[:end], group)

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
            sound = certain and block not in self.to_recompute
            self.read_wrong += sound and not np.array_equal(memory, content)
        else:
            self._written(block)
            memory[:] = 0
            memory[:] = content
            self.to_recompute.discard(block)

    def _check_publishes(self, output: Output) -> None:
        for run in output.plan.publish:
            for block, key in zip(run.blocks, run.keys[0], strict=True):
                computed, loaded = self._content_of.get(key), self.loaded_content.get(key)
                if computed is None and loaded is not None:
                    self.published_loaded += 1
                    self.published_loaded_wrong += not np.array_equal(self.bytes[block], loaded)
                else:
                    self.published_wrong += computed is None or not np.array_equal(self.bytes[block], computed)
