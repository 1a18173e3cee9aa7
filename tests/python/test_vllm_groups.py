"""Several KV-cache groups over one block pool: what is published, found and loaded for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import kvclient
from kvclient._native import BlockKeys, ShardKeys
from kvclient.daemon import PrivateDaemon
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.groups import KvGroup, describe, groups_of
from kvclient.vllm.hits import longest_hit
from kvclient.vllm.plan import Load, StepPlan
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.stores import Run
from kvclient.vllm.tables import BlockTable
from kvclient.vllm.worker import WorkerSide
from support.paged_pool import Pool
from support.paged_step import Cached, NewRequest, Output, Request
from support.publishing_peer import publishing_peer
from support.specs import small_spec

SPEC = small_spec()
FULL, WINDOW = KvGroup(), KvGroup(window=6)  # tokens; four make a block
STATE = KvGroup(window=2, state=True)
GROUPS = (FULL, WINDOW)


def side_of(socket: str, groups: tuple[KvGroup, ...], by_request: bool = True, load: Any = "async") -> SchedulerSide:
    made = SchedulerSide(ConnectorOptions(socket=socket, min_prefix_tokens=4, load=load))
    made.attach(kvclient.Client(socket, name="s"), SPEC, [kvclient.Shard()], groups=groups, by_request=by_request)
    made.bind_pool(Pool(64))
    return made


@pytest.fixture
def side(kvmd: PrivateDaemon) -> SchedulerSide:
    return side_of(kvmd.socket, GROUPS)


def keys_of(group: int, tokens: list[int], groups: int = 2) -> BlockKeys:
    """Keys of one group's blocks."""
    names = kvclient.KeyChain(SPEC, kvclient.Shard()).extend(tokens)
    if groups == 1:
        return names
    keys = BlockKeys()
    ShardKeys(SPEC, kvclient.Shard(kv_group=group)).extend(keys, names)
    return keys


# ---- which blocks are needed ----


@pytest.mark.parametrize(("tokens", "first"), [(0, 0), (4, 0), (8, 0), (12, 1), (16, 2), (40, 8)])
def test_a_window_needs_the_blocks_that_it_reaches_into(tokens: int, first: int) -> None:
    assert WINDOW.first_block(tokens, 4) == first
    assert FULL.first_block(tokens, 4) == 0


def test_blocks_that_the_engine_keeps_before_the_window_are_needed_too() -> None:
    assert KvGroup(window=6, kept=4).first_block(40, 4) == 7


def hit(present: list[str], groups: tuple[KvGroup, ...] = GROUPS, first: int = 0) -> int:
    """``present``: for each group a text with ``x`` for each block that is published."""

    def run(numbers: Any, begin: int, end: int) -> int:
        parts = [present[number][begin:end] for number in numbers]
        return min(len(part) - len(part.lstrip("x")) for part in parts)

    last = len(present[0]) - any(group.ahead for group in groups)
    return longest_hit(groups, first, last, 4, run)


def test_a_hit_needs_the_tail_of_a_window_only() -> None:
    assert hit(["xxxxx", "...xx"]) == 5
    assert hit(["xxxxx", "..xx."]) == 4
    assert hit(["xxxxx", "xx..."]) == 2
    assert hit(["xx.xx", "...xx"]) == 0
    assert hit(["xxxxx", "x...."]) == 1
    assert hit(["xxxxx", "x.x.x"]) == 1


def test_blocks_of_the_engines_own_cache_need_not_be_published() -> None:
    assert hit([".....", "....."], first=5) == 5
    assert hit(["...xx", "...xx"], first=3) == 5
    assert hit(["...xx", "....x"], first=3) == 3


def test_windows_of_different_lengths_are_all_needed() -> None:
    groups = (FULL, WINDOW, KvGroup(window=10))
    assert hit(["xxxxxx", "...xxx", "..xxxx"], groups) == 6
    assert hit(["xxxxxx", "..xxxx", "..xxx."], groups) == 5
    assert hit(["xxxxxx", "..xx..", "..xxx."], groups) == 0


# ---- chunks, and drafts that look ahead ----

CHUNKS = KvGroup(chunk=12)  # three blocks
DRAFT, DRAFT_WINDOW = KvGroup(ahead=True), KvGroup(window=6, ahead=True)


@pytest.mark.parametrize(("tokens", "first"), [(0, 0), (8, 0), (12, 3), (16, 3), (20, 3), (24, 6)])
def test_of_chunks_only_the_last_one_is_needed(tokens: int, first: int) -> None:
    assert CHUNKS.first_block(tokens, 4) == first


def test_a_hit_needs_the_blocks_of_the_chunk_that_it_ends_in() -> None:
    groups = (FULL, CHUNKS)
    assert hit(["xxxxxxx", "......x"], groups) == 7
    assert hit(["xxxxxxx", "......."], groups) == 6
    assert hit(["xxxxx..", "...x..."], groups) == 4
    assert hit(["xxxxx..", "....xx."], groups) == 3
    assert hit(["xx.....", "......."], groups) == 0
    assert hit(["xx.....", "x......"], groups) == 1


def test_a_hit_of_a_draft_needs_the_block_after_its_end() -> None:
    assert hit(["xxxx."], (DRAFT,)) == 3
    assert hit(["xxxxx."], (DRAFT,)) == 4
    assert hit(["......"], (DRAFT,)) == 0
    assert hit(["xxxxx.", "xxxxx."], (FULL, DRAFT)) == 4
    assert hit(["xxxxx.", "..xxx."], (DRAFT, DRAFT_WINDOW)) == 4
    assert hit(["xxxxx.", "...xx."], (DRAFT, DRAFT_WINDOW)) == 0
    assert hit(["xxx...", "..xxx."], (FULL, DRAFT_WINDOW)) == 0
    assert hit(["xxxxx.", "..xx.."], (FULL, WINDOW)) == 4
    assert hit(["xxxxx.", "..xx.."], (FULL, DRAFT_WINDOW)) == 0


def test_the_block_after_a_drafts_hit_may_be_the_engines_own() -> None:
    assert hit(["...x.."], (DRAFT,), first=3) == 3
    assert hit(["...xx."], (DRAFT,), first=3) == 4


def test_windows_and_states_are_found_far_before_the_last_ones() -> None:
    """They are kept at the end of prompts and where prompts part: answers of thousands of tokens have none."""
    blocks = 900
    states = ["x" * blocks, "." * 99 + "x" + "." * (blocks - 100)]
    assert hit(states, (FULL, STATE)) == 100
    windows = ["x" * blocks, "." * 98 + "xx" + "." * (blocks - 100)]
    assert hit(windows, GROUPS) == 100


def test_a_lookup_that_finds_only_pieces_of_windows_ends() -> None:
    groups, calls = (FULL, KvGroup(window=400)), 0

    def run(numbers: Any, begin: int, end: int) -> int:
        nonlocal calls
        calls += 1
        return end - begin if numbers == [0] else max(0, end - begin - 1)

    assert longest_hit(groups, 0, 4000, 4, run) == 0
    assert calls < 1100


# ---- publishing ----


class Engine:
    """Requests whose blocks of the second group are freed as the window moves on, as vLLM does."""

    def __init__(self, side: SchedulerSide) -> None:
        self.side, self.pool = side, side._pool
        self.tables: dict[str, list[list[Any]]] = {}

    def start(self, name: str, tokens: list[int]) -> tuple[Any, Output]:
        request: Any = Request(name, tokens, 8)
        assert self.side.matched_tokens(request, 0) == (0, False)
        tables = [self.pool.take(-(-len(tokens) // 4)) for _ in GROUPS]
        for group, blocks in enumerate(tables):
            for index in range(len(tokens) // 4):
                self.pool.cache(blocks[index], request.content(index) + bytes([group]))
        self.tables[name] = tables
        ids = tuple([block.block_id for block in blocks] for blocks in tables)
        return request, Output(scheduled_new_reqs=[NewRequest(name, ids)], num_scheduled_tokens={name: len(tokens)})

    def computed(self, request: Any) -> None:
        request.num_computed_tokens = request.num_tokens
        blocks = self.tables[request.request_id][1]
        first = WINDOW.first_block(request.num_computed_tokens, 4)
        self.pool.give_back([block for block in blocks[:first] if block.block_id])
        blocks[:first] = [self.pool.blocks[0]] * first

    def next(self, *names: str) -> Output:
        cached = Cached(req_ids=list(names), new_block_ids=[None] * len(names))
        return Output(scheduled_cached_reqs=cached, num_scheduled_tokens=dict.fromkeys(names, 1))


def ids(blocks: list[Any]) -> list[int]:
    return [block.block_id for block in blocks]


def published(plan: StepPlan) -> dict[int, Any]:
    """Block -> key of what a plan publishes."""
    return {block: key for run in plan.publish for block, key in zip(run.blocks, run.keys[0], strict=True)}


def test_groups_have_keys_of_their_own(side: SchedulerSide) -> None:
    engine = Engine(side)
    request, output = engine.start("r", list(range(10)))
    tables = [ids(blocks) for blocks in engine.tables["r"]]
    plan = side.plan(output)
    assert sorted(plan.begin) == sorted(tables[0] + tables[1])
    assert plan.publish == []
    request.num_computed_tokens = 10
    expected = {
        block: key
        for group in (0, 1)
        for block, key in zip(tables[group][:2], keys_of(group, list(range(8))), strict=True)
    }
    assert len(set(expected.values())) == 4
    assert published(side.plan(engine.next("r"))) == expected


def test_blocks_that_left_the_window_are_published_while_the_pool_keeps_them(side: SchedulerSide) -> None:
    engine = Engine(side)
    request, output = engine.start("r", list(range(20)))
    windowed = ids(engine.tables["r"][1])
    side.plan(output)
    engine.computed(request)
    assert set(windowed) <= set(published(side.plan(engine.next("r"))))


def test_blocks_that_left_the_window_and_went_to_another_request_are_withdrawn(side: SchedulerSide) -> None:
    """Else the other request's bytes would be published under keys of the first one's."""
    engine = Engine(side)
    request, output = engine.start("r", list(range(20)))
    full, windowed = (ids(blocks) for blocks in engine.tables["r"])
    side.plan(output)
    engine.computed(request)
    while engine.pool.free_count() > 10:
        engine.pool.take(1)
    other, theirs = engine.start("other", list(range(100, 120)))
    taken = set(ids(engine.tables["other"][0] + engine.tables["other"][1])) & set(windowed)
    assert taken
    both = engine.next("r")
    both.scheduled_new_reqs = theirs.scheduled_new_reqs
    both.num_scheduled_tokens |= theirs.num_scheduled_tokens
    plan = side.plan(both)
    assert taken <= set(plan.begin)
    assert set(published(plan)) == set(full + windowed) - taken
    engine.computed(other)
    plan = side.plan(engine.next("r", "other"))
    mine = {key for group in (0, 1) for key in keys_of(group, list(range(20)))}
    assert not mine & set(published(plan).values())
    assert taken <= set(published(plan))


def test_a_block_that_went_to_another_request_unseen_is_not_published_for_the_first_one(side: SchedulerSide) -> None:
    """While a step waits for a load nothing is published, and the pool goes on."""
    engine = Engine(side)
    request, output = engine.start("r", list(range(20)))
    windowed = ids(engine.tables["r"][1])
    side.plan(output)
    engine.computed(request)
    while engine.pool.free_count() > 10:
        engine.pool.take(1)
    other, theirs = engine.start("other", list(range(100, 120)))
    taken = set(ids(engine.tables["other"][0] + engine.tables["other"][1])) & set(windowed)
    assert taken
    side._loads._waited.add("a third one")
    assert side.plan(theirs).publish == []
    side.loaded((), ["a third one"])
    assert not taken & set(published(side.plan(engine.next("r"))))
    engine.computed(other)
    assert taken <= set(published(side.plan(engine.next("other"))))


def test_a_block_that_another_group_gets_is_withdrawn(side: SchedulerSide) -> None:
    """One generation for each block, whichever group has it."""
    engine = Engine(side)
    request, output = engine.start("r", list(range(8)))
    side.plan(output)
    engine.computed(request)
    block = engine.tables["r"][0][0].block_id
    assert block in published(side.plan(engine.next("r")))
    engine.pool.give_back(engine.tables["r"][0] + engine.tables["r"][1])
    side.finished(request)
    side.plan(Output())
    while True:
        [taken] = engine.pool.take(1)
        if taken.block_id == block:
            break
    engine.pool.cache(taken, b"of the other group" + bytes([1]))
    other: Any = Request("other", list(range(50, 58)), 1)
    side.matched_tokens(other, 0)
    plan = side.plan(Output(scheduled_new_reqs=[NewRequest("other", ([], [block]))], num_scheduled_tokens={"other": 8}))
    assert plan.begin == [block]


def test_blocks_that_the_engine_never_caches_are_passed_over(side: SchedulerSide) -> None:
    """Of a window, vLLM gives a hash only to blocks at which a request can begin."""
    engine = Engine(side)
    request, output = engine.start("r", list(range(20)))
    windowed = engine.tables["r"][1]
    for block in windowed[:3]:
        engine.pool.evict(block)
    side.plan(output)
    request.num_computed_tokens = 20
    waiting = engine.next("r")
    # A step without this request: it may still be about to be hashed.
    waiting.num_scheduled_tokens.clear()
    assert not set(ids(windowed)) & set(published(side.plan(waiting)))
    assert set(ids(windowed)[3:]) <= set(published(side.plan(engine.next("r"))))
    assert not side.publishing.is_considered("r")


def test_a_block_that_drafts_may_still_write_to_waits_for_its_hash(kvmd: PrivateDaemon) -> None:
    """Of drafts that look several tokens ahead, vLLM gives a block its hash some tokens after its last one."""
    engine = Engine(side_of(kvmd.socket, (FULL, KvGroup(window=6, kept=1))))
    request, output = engine.start("r", list(range(20)))
    last = engine.tables["r"][1][4]
    engine.pool.evict(last)
    engine.side.plan(output)
    request.num_computed_tokens = 20
    assert last.block_id not in published(engine.side.plan(engine.next("r")))
    request.all_token_ids.append(20)
    request.num_computed_tokens = 21
    engine.pool.cache(last, b"at last")
    assert last.block_id in published(engine.side.plan(engine.next("r")))


def test_blocks_of_a_chunk_that_has_ended_are_published_while_the_pool_keeps_them(kvmd: PrivateDaemon) -> None:
    engine = Engine(side_of(kvmd.socket, (FULL, CHUNKS)))
    request, output = engine.start("r", list(range(26)))
    chunked = ids(engine.tables["r"][1])[:6]
    engine.side.plan(output)
    request.num_computed_tokens = 26
    assert set(chunked) <= set(published(engine.side.plan(engine.next("r"))))


def test_a_table_without_a_window_knows_its_blocks_by_the_pool_alone() -> None:
    pool = Pool(4)
    [block] = pool.take(1)
    table = BlockTable(FULL, 4)
    table.restart([block.block_id], pool)
    pool.cache(block, b"later")
    assert table.content(0, pool, 4) is block.block_hash


@pytest.mark.parametrize("group", [WINDOW, CHUNKS])
def test_a_hash_given_after_the_window_left_is_not_believed_to_be_the_requests(group: KvGroup) -> None:
    pool = Pool(4)
    [block] = pool.take(1)
    table = BlockTable(group, 4)
    table.restart([block.block_id], pool)
    pool.cache(block, b"of whom?")
    assert table.content(0, pool, 12) is None
    assert table.content(0, pool, 8) is block.block_hash
    assert table.content(0, pool, 12) is block.block_hash


# ---- states ----


def test_of_states_only_the_last_one_is_needed() -> None:
    assert [STATE.first_block(tokens, 4) for tokens in (0, 4, 8, 20)] == [0, 0, 1, 4]
    groups = (FULL, STATE)
    assert hit(["xxxxx", "....x"], groups) == 5
    assert hit(["xxxxx", ".x.x."], groups) == 4
    assert hit(["xxx.x", ".x.xx"], groups) == 2
    assert hit(["xxxxx", "....."], groups) == 0


class Stepping:
    """A request of a model with states, in an engine that launches a step before the last one's end."""

    def __init__(self, socket: str) -> None:
        self.side = side_of(socket, (FULL, STATE))
        self.pool: Any = self.side._pool
        self.request: Any = Request("r", list(range(10)), 20)
        assert self.side.matched_tokens(self.request, 0) == (0, False)
        null = self.pool.blocks[0]
        # The first piece of the prompt ends at eight tokens, with its second block
        self.tables = [self.pool.take(2), [null, *self.pool.take(1)]]
        self.cache(2)
        new = NewRequest("r", tuple(ids(table) for table in self.tables))
        self.plans = [self.side.plan(Output(scheduled_new_reqs=[new], num_scheduled_tokens={"r": 8}))]

    def cache(self, blocks: int) -> None:
        """The engine gives hashes to the first blocks."""
        for group, table in enumerate(self.tables):
            for index, block in enumerate(table[:blocks]):
                if block.block_id and block.block_hash is None:
                    self.pool.cache(block, self.request.content(index, group))

    def take(self) -> None:
        """A block more for each group, in the next step."""
        for table in self.tables:
            table += self.pool.take(1)

    def step(self, computed: int, in_flight: int) -> dict[int, Any]:
        """What the step publishes that is launched after ``computed`` tokens, ``in_flight`` of them still under way."""
        had = self.plans and len(self.side._requests.by_id["r"].tables[0].blocks)
        new = tuple(ids(table[had:]) for table in self.tables)
        self.request.num_computed_tokens, self.request.num_in_flight_tokens = computed, in_flight
        cached = Cached(req_ids=["r"], new_block_ids=[new if any(new) else None])
        self.plans.append(self.side.plan(Output(scheduled_cached_reqs=cached, num_scheduled_tokens={"r": 1})))
        return published(self.plans[-1])


def test_a_running_state_is_published_once_it_is_at_its_blocks_end(kvmd: PrivateDaemon) -> None:
    engine = Stepping(kvmd.socket)
    states, tokens = engine.tables[1], engine.request.all_token_ids
    engine.take()
    given = engine.step(8, 0)  # the prompt's last two tokens, to a third block
    assert states[1].block_id in given
    assert given[states[1].block_id] == keys_of(1, tokens[:8])[1]
    for computed in (10, 11):
        tokens.append(computed)
        assert states[2].block_id not in engine.step(computed, 1)
    tokens.append(12)
    engine.cache(3)
    engine.take()
    # The step that computes the last token has not ended
    assert states[2].block_id not in engine.step(12, 1)
    assert engine.step(13, 1)[states[2].block_id] == keys_of(1, tokens[:12])[2]


def test_of_a_state_that_the_engine_has_freed_nothing_is_believed(kvmd: PrivateDaemon) -> None:
    """Its block may be another request's: the pool shows a hash, but not whose."""
    engine = Stepping(kvmd.socket)
    states, tokens = engine.tables[1], engine.request.all_token_ids
    engine.take()
    engine.step(8, 0)
    tokens += [10, 11, 12, 13]
    engine.take()
    engine.pool.cache(states[2], b"whose?")
    assert states[2].block_id not in engine.step(14, 1)


# ---- importing ----


@pytest.fixture
def peer(kvmd: PrivateDaemon) -> Iterator[Any]:
    """Publishes keys: ``peer(keys)``."""
    with publishing_peer(kvmd.socket, SPEC) as publish:
        yield publish


TOKENS = list(range(100, 132))


def asked(side: SchedulerSide, name: str = "r") -> tuple[Any, int]:
    request: Any = Request(name, TOKENS, 1)
    side._client.declare_model(SPEC)  # type: ignore[union-attr]
    return request, side.matched_tokens(request, 0)[0]


def test_a_load_has_all_blocks_of_full_groups_and_the_tail_of_windows(side: SchedulerSide, peer: Any) -> None:
    full, windowed = keys_of(0, TOKENS), keys_of(1, TOKENS)
    peer(full)
    peer(windowed[5:7])
    request, tokens = asked(side)
    assert tokens == 28
    side.allocated(request, (list(range(10, 18)), [0, 0, 0, 0, 0, 30, 31, 32]), tokens)
    first, second = side.plan(Output()).loads
    assert (first.blocks, first.depth, list(first.keys[0])) == (list(range(10, 17)), 0, list(full[:7]))
    assert (second.blocks, second.depth, list(second.keys[0])) == ([30, 31], 5, list(windowed[5:7]))
    assert second.parents == [windowed[4]]
    assert first.whole
    assert second.whole


def test_a_window_that_is_not_there_shortens_the_hit(side: SchedulerSide, peer: Any) -> None:
    peer(keys_of(0, TOKENS))
    assert asked(side)[1] == 0
    peer(keys_of(1, TOKENS)[2:4])
    assert asked(side, "again")[1] == 16


def test_a_request_whose_loads_fail_is_computed_in_the_end(side: SchedulerSide, peer: Any) -> None:
    for group in (0, 1):
        peer(keys_of(group, TOKENS))
    for expected in (28, 28, 0):
        request, tokens = asked(side)
        assert tokens == expected
        if tokens:
            side.allocated(request, (list(range(10, 18)), [0, 0, 0, 0, 0, 30, 31, 32]), tokens)
            side.plan(Output())
            side.failed_requests({"r"})
            side.loaded({"r"}, ())


@pytest.mark.parametrize(("by_request", "load"), [(False, "async"), (True, "sync")])
def test_where_blocks_are_reported_only_prefixes_without_gaps_are_loaded(
    kvmd: PrivateDaemon, peer: Any, by_request: bool, load: str
) -> None:
    """The engine goes on from the first failed block; a window before it is not there if it was left out."""
    peer(keys_of(0, TOKENS, groups=1))
    side = side_of(kvmd.socket, (WINDOW,), by_request, load)
    request, tokens = asked(side)
    assert tokens == 8
    assert WINDOW.first_block(8, 4) == 0 < WINDOW.first_block(12, 4)
    side.allocated(request, ([10, 11, 12, 13, 14, 15, 16, 17],), tokens)
    [loaded] = side.plan(Output()).loads
    assert not loaded.whole


def test_a_model_of_windows_alone_hits_beyond_the_window(kvmd: PrivateDaemon, peer: Any) -> None:
    peer(keys_of(0, TOKENS, groups=1)[5:7])
    side = side_of(kvmd.socket, (WINDOW,))
    request, tokens = asked(side)
    assert tokens == 28
    side.allocated(request, ([0, 0, 0, 0, 0, 30, 31, 32],), tokens)
    [loaded] = side.plan(Output()).loads
    assert (loaded.blocks, loaded.depth, loaded.whole) == ([30, 31], 5, True)


def test_a_load_of_chunks_has_those_of_the_last_one(kvmd: PrivateDaemon, peer: Any) -> None:
    side = side_of(kvmd.socket, (FULL, CHUNKS))
    peer(keys_of(0, TOKENS)[:7])
    peer(keys_of(1, TOKENS)[6:7])
    request, tokens = asked(side)
    assert tokens == 28
    side.allocated(request, (list(range(10, 18)), [0, 0, 0, 0, 0, 0, 30, 31]), tokens)
    assert [(load.blocks, load.depth) for load in side.plan(Output()).loads] == [(list(range(10, 17)), 0), ([30], 6)]


def test_a_hit_at_a_chunks_end_loads_none_of_it(kvmd: PrivateDaemon, peer: Any) -> None:
    side = side_of(kvmd.socket, (FULL, CHUNKS))
    peer(keys_of(0, TOKENS)[:6])
    request, tokens = asked(side)
    assert tokens == 24
    side.allocated(request, (list(range(10, 18)), [0, 0, 0, 0, 0, 0, 30, 31]), tokens)
    assert [load.blocks for load in side.plan(Output()).loads] == [list(range(10, 16))]


@pytest.mark.parametrize("by_request", [True, False])
def test_of_a_model_of_chunks_alone_nothing_is_imported_that_needs_no_block(
    kvmd: PrivateDaemon, peer: Any, by_request: bool
) -> None:
    """A request that waits for a load of no block would wait for ever."""
    side = side_of(kvmd.socket, (CHUNKS,), by_request)
    assert asked(side)[1] == 0
    peer(keys_of(0, TOKENS, groups=1)[6:7])
    # Where blocks are reported, only a prefix without gaps is loaded
    assert asked(side, "again")[1] == (28 if by_request else 0)
    peer(keys_of(0, TOKENS, groups=1)[:6])
    assert asked(side, "once more")[1] == (28 if by_request else 8)


def test_a_draft_has_the_last_block_computed(kvmd: PrivateDaemon, peer: Any) -> None:
    """Where there are several groups, vLLM looks at the block with the prompt's last token, too."""
    for groups, whole in (((DRAFT,), 24), ((DRAFT, STATE), 28)):
        side = side_of(kvmd.socket, groups)
        for number in range(len(groups)):
            peer(keys_of(number, TOKENS, len(groups))[:5])
        assert asked(side)[1] == 16
        for number in range(len(groups)):
            peer(keys_of(number, TOKENS, len(groups))[5:8])
        assert asked(side, "again")[1] == whole
        shorter: Any = Request("shorter", TOKENS[:31], 1)
        assert side.matched_tokens(shorter, 0)[0] == 24
        tiny: Any = Request("tiny", TOKENS[:3], 1)
        assert side.matched_tokens(tiny, 0)[0] == 0


# ---- the worker ----


class Loads:
    """Memory whose loads end when the test says so."""

    block_bytes = 16

    def __init__(self) -> None:
        self.region: Any = self
        self.ended: dict[int, int] = {}  # first block -> valid blocks

    def begin(self, blocks: Any) -> None: ...

    def publish(self, runs: list[Run]) -> None: ...

    def withdraw_all(self) -> None: ...

    def load(self, keys: Any, parent: Any, depth: int, blocks: list[int], wait: bool) -> Any:
        ended = self.ended

        class Pending:
            def done(self) -> bool:
                return blocks[0] in ended

            def wait(self) -> int:
                return ended[blocks[0]]

        return Pending()


def loads_of(*tables: list[int]) -> StepPlan:
    root = kvclient.KeyChain(SPEC).parent
    keys = keys_of(0, TOKENS)
    return StepPlan(loads=[Load("r", table, 0, [keys[: len(table)]], [root], False, whole=True) for table in tables])


@pytest.fixture
def worker() -> tuple[WorkerSide, Loads]:
    made, memory = WorkerSide(ConnectorOptions(socket="/s")), Loads()
    made.serve(memory, SPEC)
    return made, memory


def test_a_load_has_ended_when_it_has_in_all_groups(worker: tuple[WorkerSide, Loads]) -> None:
    made, memory = worker
    made.start_loads(loads_of([1, 2], [3]))
    memory.ended[1] = 2
    assert made.finished_loads() == set()
    memory.ended[3] = 1
    assert made.finished_loads() == {"r"}
    assert made.take_failed_requests() == set()


def test_a_block_that_fails_in_any_group_fails_the_request(worker: tuple[WorkerSide, Loads]) -> None:
    made, memory = worker
    made.start_loads(loads_of([1, 2], [3]))
    memory.ended.update({1: 2, 3: 0})
    assert made.finished_loads() == {"r"}
    assert made.take_failed_requests() == {"r"}
    assert made.take_failed_requests() == set()
    assert made.take_failed_blocks() == set()


def test_a_load_into_the_null_block_fails(worker: tuple[WorkerSide, Loads]) -> None:
    made, memory = worker
    made.start_loads(loads_of([1, 2], [3, 0]))
    memory.ended.update({1: 2, 3: 2})
    assert made.finished_loads() == {"r"}
    assert made.take_failed_requests() == {"r"}


# ---- the spec ----


SIZE = {"block_size": 16}


def test_engines_whose_states_have_other_shapes_have_another_spec() -> None:
    from types import SimpleNamespace

    def text(shape: tuple[int, ...], dtype: str = "torch.float32") -> str:
        state = type("MambaSpec", (), {**SIZE, "shapes": ((3, 8), shape), "dtypes": ("torch.bfloat16", dtype)})()
        full = type("FullAttentionSpec", (), SIZE)()
        of = [SimpleNamespace(kv_cache_spec=each, layer_names=[name]) for each, name in ((state, "0"), (full, "1"))]
        return describe(SimpleNamespace(kv_cache_groups=of), ["0", "1"])

    assert text((2, 4)) == "state3x8bfloat16,2x4float32:0;full:1"
    assert len({text((2, 4)), text((4, 2)), text((2, 4), "torch.bfloat16")}) == 3


def test_engines_whose_groups_have_other_layers_have_another_spec() -> None:
    from types import SimpleNamespace

    full, sliding = (
        type("FullAttentionSpec", (), SIZE)(),
        type("SlidingWindowSpec", (), {**SIZE, "sliding_window": 64})(),
    )

    def text(*groups: tuple[Any, list[int]], stage: int = 0) -> str:
        of = [
            SimpleNamespace(kv_cache_spec=spec, layer_names=[f"model.layers.{stage + layer}.attn" for layer in layers])
            for spec, layers in groups
        ]
        names = [name for group in of for name in group.layer_names]
        return describe(SimpleNamespace(kv_cache_groups=of), names)

    assert text((full, [0, 1])) == ""
    assert text((sliding, [0, 2, 10]), (full, [9, 11])) == "sliding64:0,1,3;full:2,4"
    assert text((sliding, [0, 2]), (full, [1])) != text((sliding, [0, 1]), (full, [2]))
    assert text((sliding, [0, 2]), (full, [1])) == text((sliding, [0, 2]), (full, [1]), stage=3)


def test_engines_whose_chunks_are_of_other_lengths_have_another_spec() -> None:
    from types import SimpleNamespace

    def text(tokens: int) -> str:
        chunked = type("ChunkedLocalAttentionSpec", (), {**SIZE, "attention_chunk_size": tokens})()
        full = type("FullAttentionSpec", (), SIZE)()
        of = [SimpleNamespace(kv_cache_spec=each, layer_names=[name]) for each, name in ((chunked, "0"), (full, "1"))]
        return describe(SimpleNamespace(kv_cache_groups=of), ["0", "1"])

    assert text(8192) == "chunk8192:0;full:1"
    assert text(8192) != text(4096)


# ---- which groups have layers of a draft that looks ahead ----


def test_vllm_says_which_groups_a_drafts_layers_are_in_or_takes_all_for_such() -> None:
    from types import SimpleNamespace

    full, other = type("FullAttentionSpec", (), SIZE)(), type("MLAAttentionSpec", (), SIZE)()
    sliding, state = type("SlidingWindowSpec", (), {**SIZE, "sliding_window": 64})(), type("MambaSpec", (), SIZE)()

    def ahead(*flagged: int, drafts: bool = True) -> list[bool]:
        of = [
            SimpleNamespace(kv_cache_spec=each, is_eagle_group=number in flagged)
            for number, each in enumerate((full, sliding, full, other, state))
        ]
        return [each.ahead for each in groups_of(SimpleNamespace(kv_cache_groups=of), drafts_ahead=drafts)]

    assert ahead() == [True, True, True, True, False]
    assert ahead(1) == [False, True, False, False, False]
    assert ahead(2) == [True, False, True, False, False]  # equal specs are found together
    assert ahead(drafts=False) == ahead(1, drafts=False) == [False] * 5


def test_a_draft_looks_ahead_if_it_reads_hidden_states() -> None:
    from types import SimpleNamespace

    from kvclient.vllm.releases import drafts_ahead

    def engine(**methods: bool) -> bool:
        speculative = SimpleNamespace(**{name: lambda value=value: value for name, value in methods.items()})
        return drafts_ahead(SimpleNamespace(speculative_config=speculative))

    assert not drafts_ahead(SimpleNamespace(speculative_config=None))
    assert engine(use_eagle=True)
    assert not engine(use_eagle=False)
    assert engine(use_eagle=True, use_eagle_block_drop=True)
    assert not engine(use_eagle=True, use_eagle_block_drop=False)
