"""KV-cache groups whose blocks hold different numbers of tokens: names, hits, what is published and loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import kvclient
from kvclient._native import BlockKeys, ShardKeys
from kvclient.daemon import PrivateDaemon
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.engine_hashes import EngineHashes
from kvclient.vllm.groups import KvGroup, describe, groups_of, named_tokens, unit_of
from kvclient.vllm.hits import longest_hit
from kvclient.vllm.keys import KeySource, RequestKeys
from kvclient.vllm.lookups import Lookups
from kvclient.vllm.plan import StepPlan
from kvclient.vllm.scheduler import SchedulerSide
from support.paged_pool import Pool
from support.paged_step import Cached, NewRequest, Output, Request
from support.publishing_peer import publishing_peer
from support.specs import small_spec

SPEC = small_spec()
#: Blocks of four tokens, and of eight; the window's reaches into the second block before its end.
FULL, WIDE = KvGroup(), KvGroup(window=10, scale=2)
#: The other way round, as where layers that attend to all tokens have few heads.
TALL, WINDOW = KvGroup(scale=2), KvGroup(window=6)
TOKENS = list(range(100, 132))


def of_tokens(tokens: list[int]) -> bytes:
    return hashlib.sha256(repr(list(tokens)).encode()).digest()


def request_of(name: str, tokens: list[int], hashed: bool = False) -> Any:
    made: Any = Request(name, tokens, 8)
    if hashed:
        made.block_hashes = [of_tokens(tokens[: 4 * (index + 1)]) for index in range(len(tokens) // 4)]
    return made


def keys_of(number: int, group: KvGroup, tokens: list[int] = TOKENS) -> BlockKeys:
    """Keys of one group's blocks: each has the last of its names."""
    names = kvclient.KeyChain(SPEC, kvclient.Shard()).extend(tokens)
    keys, last = BlockKeys(), BlockKeys(list(names)[group.scale - 1 :: group.scale])
    ShardKeys(SPEC, kvclient.Shard(kv_group=number)).extend(keys, last)
    return keys


# ---- the groups of an engine ----


def config_of(*specs: tuple[str, int]) -> Any:
    fields = {"sliding_window": 64, "head_size": 8}
    return SimpleNamespace(
        kv_cache_groups=[
            SimpleNamespace(kv_cache_spec=type(kind, (), {**fields, "block_size": size})(), layer_names=[str(number)])
            for number, (kind, size) in enumerate(specs)
        ]
    )


def test_a_name_has_as_many_tokens_as_divide_the_blocks_of_all_groups() -> None:
    config = config_of(("SlidingWindowSpec", 64), ("FullAttentionSpec", 96))
    groups = groups_of(config)
    assert named_tokens(config) == 32
    assert groups == [KvGroup(64, scale=2), KvGroup(scale=3)]
    assert unit_of(groups) == 6
    assert describe(config, ["0", "1"]) == "sliding64@64:0;full@96:1"


def test_groups_of_one_size_are_described_without_it() -> None:
    """Blocks in the caches of running engines keep their keys."""
    config = config_of(("SlidingWindowSpec", 64), ("FullAttentionSpec", 64))
    assert describe(config, ["0", "1"]) == "sliding64:0;full:1"
    assert [group.scale for group in groups_of(config)] == [1, 1]
    assert named_tokens(config) == 64


# ---- keys ----


@pytest.mark.parametrize("hashed", [False, True])
def test_a_larger_block_has_the_last_name_in_it(hashed: bool) -> None:
    parts = [kvclient.Shard(kv_group=number) for number in range(3)]
    engine = EngineHashes("keys=test", True, lambda tokens: of_tokens(list(tokens))) if hashed else None
    request = request_of("r", TOKENS, hashed=True)
    fine = [list(each) for each in RequestKeys(KeySource(SPEC, parts, engine), request).upto(8)]
    source = KeySource(SPEC, parts, engine, [1, 2, 4])
    for first, last in ((0, 2), (1, 2), (0, 1)):
        keys = RequestKeys(source, request)
        assert list(keys.between([1], first, last)[0]) == fine[1][1::2][first:last]
        assert list(keys.between([2], first, last)[0]) == fine[2][3::4][first:last]
        assert keys.before([1], first) == ([fine[1][2 * first - 1]] if first else [keys.roots[1]])
        assert [list(each) for each in keys.whole([0, 1, 2], 2)] == [
            fine[0][: len(keys.whole([0], 2)[0])],
            fine[1][1::2][: len(keys.whole([1], 2)[0])],
            fine[2][3::4][: len(keys.whole([2], 2)[0])],
        ]
    keys = RequestKeys(source, request)
    assert list(keys.ends(1, 2, 4)) == fine[0][7:8]
    assert list(keys.ends(0, 2, 4)) == fine[0][3::4]
    assert list(keys.ends(3, 8, 1)) == fine[0][3:8]
    other = RequestKeys(KeySource(SPEC, parts, engine, [2, 1, 4]), request)
    assert list(other.ends(0, 2, 4)) == fine[0][3::4]


def test_keys_go_on_as_the_request_grows() -> None:
    source = KeySource(SPEC, [kvclient.Shard(kv_group=1)], None, [1, 2])
    request = request_of("r", TOKENS[:17])
    keys = RequestKeys(source, request)
    assert list(keys.upto(2)[0])[:2] == list(keys_of(1, WIDE))[:2]
    request.all_token_ids += TOKENS[17:]
    assert list(keys.upto(4)[0]) == list(keys_of(1, WIDE))


# ---- hits ----


def hit(present: list[str], groups: tuple[KvGroup, ...], first: int = 0, last: int = 4) -> int:
    """In units of eight tokens."""

    def run(numbers: Any, begin: int, end: int) -> int:
        parts = [present[number][begin:end] for number in numbers]
        return min(len(part) - len(part.lstrip("x")) for part in parts)

    return longest_hit(groups, first, last, 4, run)


def test_a_hit_ends_where_blocks_of_all_groups_end() -> None:
    assert hit(["xxxxxxxx", "..xx"], (FULL, WIDE)) == 4
    assert hit(["xxxxxxx.", ".xxx"], (FULL, WIDE)) == 3
    assert hit(["xxxxx...", "xx.."], (FULL, WIDE)) == 2
    assert hit(["xxx.....", "xx.."], (FULL, WIDE)) == 1
    assert hit(["x.......", "xx.."], (FULL, WIDE)) == 0
    assert hit(["xxxx", "......xx"], (TALL, WINDOW)) == 4
    assert hit(["xxxx", "....xxx."], (TALL, WINDOW)) == 3
    assert hit(["xxxx", "xx..x.x."], (TALL, WINDOW)) == 1


def test_of_the_engines_own_blocks_none_need_be_published() -> None:
    assert hit(["....xxxx", "..xx"], (FULL, WIDE), first=2) == 4
    assert hit(["........", "...."], (FULL, WIDE), first=2) == 2


def test_the_block_after_a_drafts_hit_is_one_of_its_own_size() -> None:
    ahead = KvGroup(ahead=True)
    assert hit(["xxxxxxx.", "xxxx"], (ahead, KvGroup(window=10, scale=2)), last=3) == 3
    assert hit(["xxxxxx..", "xxxx"], (ahead, KvGroup(window=10, scale=2)), last=3) == 2
    tall = KvGroup(ahead=True, scale=2)
    assert hit(["xxx.", "xxxxxxxx"], (tall, WINDOW), last=3) == 2


@pytest.mark.parametrize(
    ("groups", "tokens", "last"),
    [
        ((FULL, WIDE), 32, 3),
        ((FULL, WIDE), 33, 4),
        ((FULL, WIDE), 7, 0),
        ((KvGroup(ahead=True), WIDE), 33, 3),
        ((KvGroup(ahead=True), WIDE), 36, 4),
        ((KvGroup(ahead=True, scale=2), WINDOW), 36, 3),
        ((KvGroup(ahead=True, scale=2), WINDOW), 40, 4),
    ],
)
def test_a_hit_leaves_the_last_token_and_a_drafts_block(groups: tuple[KvGroup, ...], tokens: int, last: int) -> None:
    client: Any = None
    assert Lookups(client, groups, 1, 4, include_own=False, by_request=True).last(tokens) == last


# ---- publishing ----


def side_of(socket: str, groups: tuple[KvGroup, ...]) -> SchedulerSide:
    made = SchedulerSide(ConnectorOptions(socket=socket, min_prefix_tokens=4))
    made.attach(kvclient.Client(socket, name="s"), SPEC, [kvclient.Shard()], groups=groups, by_request=True)
    made.bind_pool(Pool(64))
    return made


class Engine:
    """A request whose blocks get hashes as far as blocks of all groups are full, as vLLM's do."""

    def __init__(self, socket: str, groups: tuple[KvGroup, ...], tokens: list[int], first: int) -> None:
        """Its first step computes ``first`` of the prompt's ``tokens``."""
        self.side, self.groups = side_of(socket, groups), groups
        self.pool: Any = self.side._pool
        self.request: Any = request_of("r", tokens)
        assert self.side.matched_tokens(self.request, 0) == (0, False)
        self.tables: list[list[Any]] = [[] for _ in groups]
        given = self.schedule(first)
        new = NewRequest("r", given)
        assert self.side.plan(Output(scheduled_new_reqs=[new], num_scheduled_tokens={"r": first})).publish == []

    def schedule(self, count: int) -> tuple[list[int], ...]:
        """Blocks for so many tokens more, and hashes for those that are then full; what windows have left is free."""
        request, self.count = self.request, count
        end, given = request.num_computed_tokens + count, []
        for number, (group, table) in enumerate(zip(self.groups, self.tables, strict=True)):
            for block in table[: group.first_block(request.num_computed_tokens, 4)]:
                if block.ref_cnt:
                    self.pool.give_back([block])
            more = self.pool.take(-(-end // (4 * group.scale)) - len(table))
            table += more
            given.append([block.block_id for block in more])
            unit = 4 * unit_of(self.groups)
            for index, block in enumerate(table[: end // unit * unit // (4 * group.scale)]):
                if block.block_hash is None and block.ref_cnt:
                    self.pool.cache(block, bytes([number]) + request.content((index + 1) * group.scale - 1))
        return tuple(given)

    def step(self, count: int = 1) -> dict[int, Any]:
        """What the step publishes that computes ``count`` tokens more; the step before has ended."""
        request = self.request
        request.num_computed_tokens += self.count
        while request.num_tokens < request.num_computed_tokens + count:
            request.all_token_ids.append(7)
        given = self.schedule(count)
        cached = Cached(req_ids=["r"], new_block_ids=[given if any(given) else None])
        return published(self.side.plan(Output(scheduled_cached_reqs=cached, num_scheduled_tokens={"r": count})))

    def keys(self, *places: tuple[int, int]) -> dict[int, Any]:
        """Block -> key of blocks given by their group and place."""
        return {
            self.tables[group][place].block_id: keys_of(group, self.groups[group], self.request.all_token_ids)[place]
            for group, place in places
        }


def published(plan: StepPlan) -> dict[int, Any]:
    """Block -> key of what a plan publishes."""
    return {block: key for run in plan.publish for block, key in zip(run.blocks, run.keys[0], strict=True)}


def test_blocks_are_published_once_blocks_of_all_groups_are_full(kvmd: PrivateDaemon) -> None:
    engine = Engine(kvmd.socket, (FULL, WIDE), TOKENS[:22], 22)
    first = [(0, place) for place in range(4)] + [(1, 0), (1, 1)]
    assert engine.step() == engine.keys(*first)
    # A fifth block of the one group is full, and its hash will come with the next unit
    assert not engine.side.publishing.is_considered("r")
    assert engine.step() == {}
    # The step that computes the unit's last token has ended
    assert engine.step() == engine.keys((0, 4), (0, 5), (1, 2))
    assert engine.request.num_computed_tokens == 24


def test_a_window_whose_blocks_get_their_hashes_at_once_is_published(kvmd: PrivateDaemon) -> None:
    """The second one, allocated a step earlier, has left the window once its content is confirmed."""
    engine = Engine(kvmd.socket, (TALL, WINDOW), TOKENS[:26], 7)
    assert engine.step(19) == engine.keys((1, 0))  # to the prompt's end
    assert engine.step() == engine.keys((0, 0), (0, 1), (0, 2), *((1, place) for place in range(1, 6)))
    assert not engine.side.publishing.is_considered("r")


def test_blocks_without_a_hash_are_passed_over_once_those_after_them_have_theirs(kvmd: PrivateDaemon) -> None:
    """Those that left the window before blocks of all groups were full never get one."""
    engine = Engine(kvmd.socket, (KvGroup(scale=4), WINDOW), TOKENS[:22], 15)
    assert engine.step(7) == {}
    assert engine.step() == engine.keys((0, 0), (1, 2), (1, 3))


def test_a_full_block_of_a_window_waits_for_its_hash(kvmd: PrivateDaemon) -> None:
    engine = Engine(kvmd.socket, (KvGroup(scale=4), WINDOW), TOKENS[:22], 12)
    assert engine.step(2) == {}
    assert engine.step(2) == {}  # to the unit's end
    assert engine.step() == engine.keys((0, 0), (1, 2), (1, 3))


def test_a_hash_of_a_part_of_a_block_is_not_its_own(kvmd: PrivateDaemon) -> None:
    """The block in which a prompt ends gets one from vLLM; what follows may be written again."""
    engine = Engine(kvmd.socket, (TALL, WINDOW), TOKENS[:22], 22)
    last = engine.tables[0][2]
    engine.pool.cache(last, b"of four tokens")
    last.block_hash_num_tokens = 20
    engine.step(2)
    given = engine.step()
    assert engine.request.num_computed_tokens == 24
    assert last.block_id not in given
    engine.pool.evict(last)
    engine.pool.cache(last, b"of all")
    last.block_hash_num_tokens = 24
    assert engine.step()[last.block_id] == keys_of(0, TALL, engine.request.all_token_ids)[2]


def test_of_an_ended_request_what_ends_with_all_groups_is_published(kvmd: PrivateDaemon) -> None:
    engine = Engine(kvmd.socket, (FULL, WIDE), TOKENS[:22], 22)
    engine.request.num_computed_tokens = 22
    engine.side.finished(engine.request)
    expected = engine.keys(*((0, place) for place in range(4)), (1, 0), (1, 1))
    assert published(engine.side.plan(Output())) == expected


# ---- importing ----


@pytest.fixture
def peer(kvmd: PrivateDaemon) -> Iterator[Any]:
    """Publishes keys: ``peer(keys)``."""
    with publishing_peer(kvmd.socket, SPEC) as publish:
        yield publish


def asked(side: SchedulerSide, name: str, tokens: list[int], computed: int = 0) -> tuple[Any, int | None]:
    request = request_of(name, tokens)
    side._client.declare_model(SPEC)  # type: ignore[union-attr]
    return request, side.matched_tokens(request, computed)[0]


def test_a_load_counts_blocks_of_each_groups_own_size(kvmd: PrivateDaemon, peer: Any) -> None:
    side = side_of(kvmd.socket, (FULL, WIDE))
    full, wide = keys_of(0, FULL), keys_of(1, WIDE)
    peer(full[:7])
    peer(wide[1:3])
    request, tokens = asked(side, "r", TOKENS)
    assert tokens == 24
    side.allocated(request, (list(range(10, 16)), [0, 30, 31]), tokens)
    first, second = side.plan(Output()).loads
    assert (first.blocks, first.depth, list(first.keys[0])) == (list(range(10, 16)), 0, list(full[:6]))
    assert (second.blocks, second.depth, list(second.keys[0])) == ([30, 31], 1, list(wide[1:3]))
    assert second.parents == [wide[0]]


def test_a_load_after_the_engines_own_blocks_has_those_that_follow(kvmd: PrivateDaemon, peer: Any) -> None:
    side = side_of(kvmd.socket, (TALL, WINDOW))
    tall, window = keys_of(0, TALL), keys_of(1, WINDOW)
    peer(tall[1:3])
    peer(window[4:6])
    request, tokens = asked(side, "r", TOKENS, computed=8)
    assert tokens == 16
    side.allocated(request, ([9, 10, 11], [0, 0, 0, 0, 30, 31]), tokens)
    first, second = side.plan(Output()).loads
    assert (first.blocks, first.depth, first.parents) == ([10, 11], 1, [tall[0]])
    assert (second.blocks, second.depth, second.parents) == ([30, 31], 4, [window[3]])


def test_after_a_part_of_a_unit_nothing_is_imported(kvmd: PrivateDaemon, peer: Any) -> None:
    side = side_of(kvmd.socket, (FULL, WIDE))
    peer(keys_of(0, FULL))
    peer(keys_of(1, WIDE))
    assert asked(side, "r", TOKENS, computed=4)[1] == 0
    assert asked(side, "again", TOKENS, computed=8)[1] == 16


def test_equal_prefixes_are_compared_where_blocks_of_all_groups_end(kvmd: PrivateDaemon, peer: Any) -> None:
    """A request waits for another one's import if that brings at least half of what it would import itself."""
    side = side_of(kvmd.socket, (FULL, WIDE))
    peer(keys_of(0, FULL))
    peer(keys_of(1, WIDE))
    request, tokens = asked(side, "r", TOKENS)
    assert tokens == 24
    side.allocated(request, (list(range(10, 16)), [0, 30, 31]), tokens)
    side.plan(Output())
    assert asked(side, "equal", TOKENS)[1] is None
    other = TOKENS[:8] + list(range(500, 524))
    peer(keys_of(0, FULL, other)[2:])
    peer(keys_of(1, WIDE, other)[1:])
    assert asked(side, "mostly another", other)[1] == 24


@pytest.mark.parametrize(("groups", "blocks"), [((FULL, WIDE), []), ((FULL, KvGroup(window=10)), [5])])
def test_kvmd_mesh_is_not_told_of_blocks_that_differ_in_size(
    kvmd: PrivateDaemon, groups: tuple[KvGroup, ...], blocks: list[int]
) -> None:
    """What it is told of has ``block_tokens`` tokens a block."""
    engine, told = Engine(kvmd.socket, groups, TOKENS[:22], 22), []
    tell: Any = SimpleNamespace(on=True, tell=lambda _, description: told.append(len(description.keys)))
    engine.side._descriptions = tell
    engine.request.num_computed_tokens = 22
    engine.side.finished(engine.request)
    assert told == blocks
