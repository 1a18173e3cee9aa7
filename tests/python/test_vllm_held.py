"""What the marketplace holds of an engine's prefixes, as reported to the routers that read the engine's KV events."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

import kvclient
from kvclient._native import BlockKeys
from kvclient.daemon import PrivateDaemon
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.groups import KvGroup
from kvclient.vllm.held import HeldBlocks, Prefix, Removed, Stored
from kvclient.vllm.scheduler import SchedulerSide
from support.paged_pool import Pool
from support.paged_step import Request
from support.specs import small_spec

SPEC = small_spec()


class Market:
    """Says of each block whether it is held; keys are derived from the hashes, which are letters."""

    def __init__(self, held: str = "", cached: str = "", **options: Any) -> None:
        self.held, self.cached, self.time, self.runs = set(held), set(cached), 0.0, 0
        self.blocks = HeldBlocks(self._run, lambda each: each.decode() in self.cached, now=lambda: self.time, **options)

    def _run(self, keys: Sequence[Any]) -> int:
        self.runs += 1
        return next((i for i, each in enumerate(keys[0]) if each not in self.held), len(keys[0]))

    def add(self, letters: str) -> None:
        keys: Any = [letters]
        self.blocks.add(Prefix([each.encode() for each in letters], [ord(each) for each in letters], keys))

    def look(self) -> list[str]:
        """``+parent:blocks`` and ``-blocks``, of the look after the next interval."""
        self.time += 1
        return [written(each) for each in self.blocks.changes()]


def written(change: Stored | Removed) -> str:
    if isinstance(change, Removed):
        return "-" + b"".join(change.hashes).decode()
    hashes = b"".join(change.prefix.hashes).decode()
    return f"+{hashes[change.first - 1] if change.first else ''}:{hashes[change.first : change.last]}"


def test_what_the_marketplace_holds_is_reported_once() -> None:
    market = Market("abc")
    market.add("abcd")
    assert market.look() == ["+:abc"]
    assert market.look() == []
    market.held |= set("d")
    assert market.look() == ["+c:d"]


def test_what_it_no_longer_holds_is_reported_children_first() -> None:
    market = Market("abcd")
    market.add("abcd")
    market.look()
    market.held = set("acd")
    assert market.look() == ["-dcb"]
    assert market.look() == []


def test_blocks_behind_those_that_the_engine_has_itself_are_reported() -> None:
    market = Market("cd", cached="ab")
    market.add("abcd")
    assert market.look() == ["+b:cd"]
    market.cached = set("a")
    assert market.look() == ["-dc"]


def test_blocks_behind_a_gap_are_not_reported() -> None:
    market = Market("acd")
    market.add("abcd")
    assert market.look() == ["+:a"]


def test_a_prefix_that_goes_on_is_looked_after_in_place_of_its_beginning() -> None:
    market = Market("abcd")
    market.add("ab")
    market.look()
    market.add("abcd")
    assert market.look() == ["+b:cd"]
    assert len(market.blocks._prefixes) == 1


def test_what_is_forgotten_is_reported_as_gone_unless_another_prefix_has_it() -> None:
    market = Market("abcdxyz", most_blocks=5)
    market.add("abc")
    assert market.look() == ["+:abc"]
    market.add("axyz")
    assert market.look() == ["-bc", "+a:xyz"]


def test_after_the_readers_cache_was_cleared_all_is_reported_again() -> None:
    market = Market("ab")
    market.add("ab")
    market.look()
    market.blocks.cleared()
    assert market.look() == ["+:ab"]


def test_blocks_of_another_model_are_gone() -> None:
    market = Market("ab")
    market.add("ab")
    market.look()
    market.blocks.clear()
    assert market.look() == ["-ab"]
    assert market.blocks._blocks == 0


def test_what_is_taken_back_is_reported_again_when_it_can_be_imported() -> None:
    market = Market("ab")
    market.add("ab")
    market.look()
    assert [sorted(each.hashes) for each in market.blocks.taken_back()] == [[b"a", b"b"]]
    assert list(market.blocks.taken_back()) == []
    assert market.look() == ["+:ab"]


def test_a_look_is_bounded_and_all_prefixes_have_their_turn() -> None:
    market = Market()
    alphabet = [chr(0x100 + i) for i in range(3000)]
    for at in range(0, 3000, 100):
        market.add("".join(alphabet[at : at + 100]))
    market.held = set(alphabet)
    looks = [sum(each.last - each.first for each in market.blocks.changes() if isinstance(each, Stored))]
    assert 1024 <= looks[0] < 1200
    assert market.look() != []
    market.look()
    assert len(market.blocks._reported) == 3000


def test_between_looks_nothing_is_looked_up() -> None:
    market = Market("ab")
    market.add("ab")
    market.look()
    before = market.runs
    assert list(market.blocks.changes()) == []
    assert market.runs == before


def test_gaps_cost_a_bounded_number_of_lookups() -> None:
    market = Market()
    letters = "".join(chr(0x100 + i) for i in range(400))
    market.held, market.cached = set(letters[::2]), set(letters[1::2])
    market.add(letters)
    market.look()
    assert market.runs <= 16


def test_a_reader_knows_what_is_held_whatever_happens() -> None:
    """Random prefixes of a tree, of which blocks come and go: a parent is known before its child is reported."""
    dice = random.Random(5)
    market = Market(most_blocks=40)
    known: set[str] = set()
    for _ in range(400):
        action = dice.randrange(5)
        if action == 0:
            start = chr(0x100 + 10 * dice.randrange(6))
            market.add("".join(chr(ord(start) + i) for i in range(dice.randrange(1, 10))))
        elif action == 1:
            market.held ^= {chr(0x100 + dice.randrange(60)) for _ in range(4)}
        elif action == 2:
            market.blocks.cleared()
            known.clear()
        market.time += 1
        for change in market.blocks.changes():
            names = [each.decode() for each in change.hashes] if isinstance(change, Removed) else []
            assert known.issuperset(names)
            known.difference_update(names)
            if isinstance(change, Stored):
                names = [each.decode() for each in change.prefix.hashes]
                assert change.first == 0 or names[change.first - 1] in known
                assert known.isdisjoint(names[change.first : change.last])
                known.update(names[change.first : change.last])
        expected: set[str] = set()
        for prefix in market.blocks._prefixes.values():
            letters = b"".join(prefix.hashes).decode()
            expected.update(letters[: market._run([letters])])
        assert known == expected


# ---- of an engine ----


def ended(side: SchedulerSide, tokens: list[int], **fields: Any) -> Any:
    """A request that has been computed and has ended."""
    request: Any = Request("r", tokens, 1)
    request.block_hashes = [b"%d" % index * 32 for index in range(len(tokens) // 4)]
    for name, value in fields.items():
        setattr(request, name, value)
    side.matched_tokens(request, 0)
    request.num_computed_tokens = len(tokens)
    side.finished(request)
    return request


def side_of(kvmd: PrivateDaemon, *groups: KvGroup) -> SchedulerSide:
    side = SchedulerSide(ConnectorOptions(socket=kvmd.socket, min_prefix_tokens=4))
    client = kvclient.Client(kvmd.socket, name="s")
    client.declare_model(SPEC)
    side.attach(client, SPEC, [kvclient.Shard()], groups=groups or (KvGroup(),), by_request=True)
    side.bind_pool(Pool(64))
    side.report_held(lambda _: False)
    return side


TOKENS = list(range(100, 118))


@pytest.fixture
def published(kvmd: PrivateDaemon) -> Any:
    """A peer that has published the first three blocks of TOKENS."""
    client = kvclient.Client(kvmd.socket, name="peer")
    region = client.allocate_region(client.declare_model(SPEC), kvclient.Geometry.contiguous(8, 16), name="peer")
    chain = kvclient.KeyChain(SPEC)
    root, keys = chain.parent, chain.extend(TOKENS)[:3]
    region.publish_run(BlockKeys(keys), root, 0, region.begin_writes(range(3)))
    region.flush()
    yield region
    client.close()


def test_what_a_peer_has_of_an_ended_request_is_reported(kvmd: PrivateDaemon, published: Any) -> None:
    side = side_of(kvmd)
    assert list(side.held_changes()) == []
    request = ended(side, TOKENS)
    [change] = side.held_changes()
    assert isinstance(change, Stored)
    assert (change.first, change.last) == (0, 3)
    assert change.prefix.hashes == request.block_hashes
    assert change.prefix.tokens == TOKENS[:16]


def test_what_an_engine_that_has_left_reported_is_gone(kvmd: PrivateDaemon, published: Any) -> None:
    side = side_of(kvmd)
    request = ended(side, TOKENS)
    list(side.held_changes())
    side.leave()
    [change] = side.held_changes()
    assert isinstance(change, Removed)
    assert sorted(change.hashes) == sorted(request.block_hashes[:3])
    assert list(side.held_changes()) == []


@pytest.mark.parametrize(("registered", "known"), [(False, True), (True, False)])
def test_while_the_engines_weights_are_not_known_nothing_counts_as_held(
    kvmd: PrivateDaemon, published: Any, registered: bool, known: bool
) -> None:
    """Nor while its memory is not registered, as in sleep: it imports nothing then."""
    side = side_of(kvmd)
    ended(side, TOKENS)
    list(side.held_changes())
    side.model.now = lambda reset: (SPEC if known else None, registered)
    side._settle(side.model.look(side._pool))
    [gone] = side.held_changes()
    assert isinstance(gone, Removed)
    side.model.now = lambda reset: (SPEC, True)
    side._settle(side.model.look(side._pool))
    assert side._held is not None
    side._held.cleared()
    [again] = side.held_changes()
    assert isinstance(again, Stored)


def test_an_emptied_prefix_cache_has_all_reported_again(kvmd: PrivateDaemon, published: Any) -> None:
    side = side_of(kvmd)
    ended(side, TOKENS)
    assert len(list(side.held_changes())) == 1
    side._pool.reset()
    [change] = side.held_changes()
    assert isinstance(change, Stored)


@pytest.mark.parametrize("fields", [{"cache_salt": "s"}, {"mm_features": [object()]}])
def test_blocks_that_tokens_do_not_tell_are_not_reported(kvmd: PrivateDaemon, fields: dict[str, Any]) -> None:
    side = side_of(kvmd)
    request: Any = Request("r", TOKENS, 1)
    request.block_hashes = [b"%d" % index * 32 for index in range(4)]
    side._requests.track(request, side.model.keys, 0)
    request.num_computed_tokens = len(TOKENS)
    for name, value in fields.items():
        setattr(request, name, value)
    side.finished(request)
    assert side._held is not None
    assert not side._held._prefixes


def test_requests_are_not_remembered_where_nothing_reports(kvmd: PrivateDaemon, published: Any) -> None:
    side = side_of(kvmd)
    side._held = None
    ended(side, TOKENS)
    assert list(side.held_changes()) == []


@pytest.mark.parametrize("groups", [(KvGroup(), KvGroup(6)), (KvGroup(6),)])
def test_of_windows_and_of_several_groups_nothing_is_reported(kvmd: PrivateDaemon, groups: Any) -> None:
    """A router counts leading blocks, which say nothing of a window."""
    side = side_of(kvmd, *groups)
    assert side._held is None
    assert list(side.held_changes()) == []
