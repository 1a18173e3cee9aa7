"""Time of the connector's two calls on the scheduler's thread, without vLLM: planning a step, and looking up a request.

    python bench_scheduler.py        from tests/python, with kvclient and kvmd at hand as for the tests

Minima of many repetitions, in microseconds: what else the machine does hides in everything but the minimum.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.vllm.engine_hashes import EngineHashes
from kvclient.vllm.groups import KvGroup
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.scheduler import SchedulerSide
from support.paged_pool import Pool
from support.paged_step import Cached, NewRequest, Output, Request
from support.specs import small_spec

BLOCK = 16
PROMPT = 8192
STEPS = 128


def fastest(repetitions: int, call: Callable[[int], object]) -> float:
    """Microseconds of the fastest call; ``call`` gets its number."""
    times = []
    for number in range(repetitions):
        began = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - began)
    return 1e6 * min(times)


def side_of(
    socket: str,
    pool: Pool,
    hashes: EngineHashes | None = None,
    ranks: int = 1,
    groups: Sequence[KvGroup] = (KvGroup(),),
) -> SchedulerSide:
    """An engine's scheduler side with blocks of 16 tokens."""
    spec = small_spec(block_tokens=BLOCK, tp_size=ranks, num_kv_heads=ranks)
    side = SchedulerSide(ConnectorOptions(socket=socket))
    client = kvclient.Client(socket, name="bench")
    client.declare_model(spec)
    shards = [kvclient.Shard(tp_rank=rank, tp_size=ranks) for rank in range(ranks)]
    side.attach(client, spec, shards, hashes=hashes, groups=groups, by_request=len(groups) > 1)
    side.bind_pool(pool)
    return side


def hash_of(tokens: Sequence[int]) -> bytes:
    """Stands for vLLM's hash."""
    return hashlib.sha256(str(list(tokens)).encode()).digest()


class Decoding:
    """``count`` requests that get one token in each step.

    ``together``: all fill a block in one step of 16, and nothing is to be published in the others; else one request in
    16 fills a block in each step.
    """

    def __init__(self, socket: str, count: int, steps: int, together: bool) -> None:
        self.pool = Pool(count * (3 + (steps + BLOCK) // BLOCK) + 1)
        self.side = side_of(socket, self.pool, EngineHashes("keys=bench", True, hash_of))
        self.requests: list[Any] = [
            Request(f"r{i}", list(range(40 if together else 40 + i % BLOCK)), 10_000) for i in range(count)
        ]
        self.names = [request.request_id for request in self.requests]
        started = []
        for request in self.requests:
            request.block_hashes = [hash_of(request.all_token_ids[:BLOCK])]
            request.blocks = self.pool.take(-(-request.num_tokens // BLOCK))
            self._cache(request)
            self.side.matched_tokens(request, 0)
            started.append(NewRequest(request.request_id, ([block.block_id for block in request.blocks],)))
        self.side.plan(Output(scheduled_new_reqs=started))
        for request in self.requests:
            request.num_computed_tokens = request.num_tokens

    def _cache(self, request: Any) -> None:
        for index in range(request.num_tokens // BLOCK):
            if index == len(request.block_hashes):
                request.block_hashes.append(hash_of([int(request.request_id[1:]), index]))
            if request.blocks[index].block_hash is None:
                self.pool.cache(request.blocks[index], request.request_id.encode() + index.to_bytes(4, "big"))

    def step(self) -> float:
        """Microseconds that planning the next step takes."""
        given: list[tuple[list[int], ...] | None] = []
        for request in self.requests:
            request.all_token_ids.append(7)
            self._cache(request)
            full = request.num_computed_tokens == len(request.blocks) * BLOCK
            new = self.pool.take(1) if full else []
            request.blocks += new
            given.append(([new[0].block_id],) if new else None)
        output = Output(scheduled_cached_reqs=Cached(self.names, set(), given))
        began = time.perf_counter()
        self.side.plan(output)
        spent = time.perf_counter() - began
        for request in self.requests:
            request.num_computed_tokens += 1
        return 1e6 * spent


def lookup(socket: str, hashed: bool, ranks: int) -> float:
    """One request of 8,192 tokens that finds nothing: keys and lookup. ``hashed``: from the engine's block hashes."""
    side = side_of(socket, Pool(64), EngineHashes("keys=bench", True, hash_of) if hashed else None, ranks)
    requests: list[Any] = [Request(f"r{number}", list(range(PROMPT)), 1) for number in range(200)]
    if hashed:
        hashes = [hash_of(range(BLOCK)), *(hash_of([number]) for number in range(1, PROMPT // BLOCK))]
        for request in requests:
            request.block_hashes = list(hashes)
    return fastest(200, lambda number: side.matched_tokens(requests[number], 0))


def hit(
    socket: str, windows: Sequence[int] = (0,), *, windows_at: int = 0, other_bytes: int = 1 << 16
) -> tuple[float, float]:
    """The same for different prompts that a peer has published whole: the fastest, and the median.

    ``windows``: for each KV-cache group the tokens that its layers reach, 0: all. Of windows, the peer has published
    what is needed to go on after all blocks but the last ``windows_at`` + 1 ones, as vLLM keeps them. Between two
    prompts, ``other_bytes`` that nothing else uses are written: vLLM's scheduler does other work in between, too, and
    after a step the processor's caches hold little of ours.
    """
    count, blocks, groups = 64, PROMPT // BLOCK, [KvGroup(window) for window in windows]
    side = side_of(socket, Pool(64), EngineHashes("keys=bench", True, hash_of), groups=groups)
    spec, end = small_spec(block_tokens=BLOCK), blocks - 1 - windows_at
    peer = kvclient.Client(socket, name="peer")
    region = peer.allocate_region(
        peer.declare_model(spec), kvclient.Geometry.contiguous(count * blocks * len(groups), 256), name="p"
    )
    requests: list[Any] = []
    free = iter(range(count * blocks * len(groups)))
    for number in range(count):
        request: Any = Request(f"r{number}", [number + i for i in range(PROMPT)], 1)
        first = hash_of(request.prompt_token_ids[:BLOCK])
        request.block_hashes = [first, *(hash_of([number, index]) for index in range(1, blocks))]
        names = kvclient.BlockKeys()
        names.extend_hashes(request.block_hashes, blocks)
        for place, group in enumerate(groups):
            keys, shard = kvclient.BlockKeys(), kvclient.ShardKeys(spec, kvclient.Shard(kv_group=place))
            shard.extend(keys, names)
            begin, last = (group.first_block(end * BLOCK, BLOCK), end) if group.window else (0, blocks)
            parent = keys[begin - 1] if begin else shard.root
            region.publish_run(
                keys[begin:last], parent, begin, region.begin_writes([next(free) for _ in keys[begin:last]])
            )
        requests.append(request)
    region.flush(60.0)
    wanted = (end if any(windows) else blocks - 1) * BLOCK
    while side.matched_tokens(requests[0], 0)[0] != wanted:  # until the region is mapped
        time.sleep(0.01)
    other, times = bytearray(other_bytes), []
    for _ in range(5):
        for request in requests[1:]:
            side.finished(request)
            other[::64] = bytes(len(other) // 64)
            began = time.perf_counter()
            tokens, _ = side.matched_tokens(request, 0)
            times.append(1e6 * (time.perf_counter() - began))
            assert tokens == wanted
    times.sort()
    peer.close()
    return times[0], times[len(times) // 2]


def main() -> None:
    """Print one line for each."""
    with PrivateDaemon() as kvmd:
        for count in (16, 256, 1024):
            for together in (True, False):
                decoding = Decoding(kvmd.socket, count, STEPS, together)
                spent = sorted(decoding.step() for _ in range(STEPS))
                what = "nothing to publish" if together else f"{count // BLOCK} blocks to publish"
                print(f"plan, {count:5} decoding, {what:20}: {spent[0]:7.1f} us, median {spent[STEPS // 2]:7.1f} us")
        for ranks in (1, 8):
            for hashed in (False, True):
                what = "vLLM's hashes" if hashed else "tokens"
                spent = lookup(kvmd.socket, hashed, ranks)
                print(f"lookup of {PROMPT} tokens, {ranks} ranks, keys from {what:13}: {spent:7.1f} us")
        for other in (1 << 16, 1 << 22):
            spent, median = hit(kvmd.socket, other_bytes=other)
            what = f"one group, {other >> 10} KiB in between"
            print(f"lookup of {PROMPT} tokens, found, {what:34}: {spent:7.1f} us, median {median:7.1f} us")
        for what, windows, windows_at in (
            ("full and window", (0, 128), 0),
            ("full and window, 64 blocks earlier", (0, 128), 64),
            ("full and two windows, one of 4,096", (0, 128, 4096), 0),
            ("full and states, 400 blocks earlier", (0, 2), 400),  # the rule of states
        ):
            spent, median = hit(kvmd.socket, windows, windows_at=windows_at)
            print(f"lookup of {PROMPT} tokens, found, {what:34}: {spent:7.1f} us, median {median:7.1f} us")


if __name__ == "__main__":
    main()
