"""Requests of one engine that want the same prefix imported: the engine copies it once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.vllm.equal_prefixes import EqualPrefixes
from kvclient.vllm.groups import KvGroup
from kvclient.vllm.keys import KeySource, RequestKeys
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.tracked import TrackedRequest
from support.paged_engine import Engine
from support.paged_pool import BLOCK_TOKENS, Pool
from support.paged_step import Output, Request
from support.specs import small_spec
from support.waiting import eventually

SPEC = small_spec()
PREFIX = list(range(100, 140))  # ten blocks


class Asking:
    """A scheduler's side, and a peer that has published ten blocks."""

    def __init__(self, socket: str, windows: Sequence[int] = (0,), load: str = "async") -> None:
        groups = [KvGroup(window) for window in windows]
        self.pool = Pool(100)
        self.side = SchedulerSide(
            ConnectorOptions(socket=socket, min_prefix_tokens=8, load=load)  # type: ignore[arg-type]
        )
        self.client = kvclient.Client(socket, name="side")
        self.client.declare_model(SPEC)
        self.side.attach(self.client, SPEC, [kvclient.Shard()], groups=groups, by_request=any(windows))
        self.side.bind_pool(self.pool)
        self.peer = kvclient.Client(socket, name="peer")
        model = self.peer.declare_model(SPEC)
        region = self.peer.allocate_region(model, kvclient.Geometry.contiguous(40, 256), name="r")
        keys = RequestKeys(
            KeySource(SPEC, [kvclient.Shard(kv_group=group) for group in range(len(windows))]), Request("p", PREFIX, 1)
        ).upto(10)
        roots = [kvclient.ShardKeys(SPEC, kvclient.Shard(kv_group=group)).root for group in range(len(windows))]
        for group, of_group in enumerate(keys):
            writes = region.begin_writes(list(range(10 * group, 10 * group + 10)))
            region.publish_run(of_group, roots[group], 0, writes)
        region.flush(60.0)
        self.region = region
        eventually(lambda: self.ask(Request("until mapped", [*PREFIX, 1], 1)) == len(PREFIX), 6000)
        self.side.finished(Request("until mapped", [*PREFIX, 1], 1))

    def ask(self, request: Request, computed: int = 0) -> int | None:
        return self.side.matched_tokens(request, computed)[0]

    def load(self, request: Request) -> None:
        """Ask for the request, which then waits for its load."""
        tokens = self.ask(request)
        assert tokens
        tables = [[block.block_id for block in self.pool.take(tokens // BLOCK_TOKENS + 1)] for _ in self.side._groups]
        self.side.allocated(request, tables, tokens)
        self.side.plan(Output())


def request(name: str, *more: int, prefix: list[int] = PREFIX) -> Request:
    return Request(name, [*prefix, *more], 1)


@pytest.fixture(params=[(0,), (0, 9)], ids=["one group", "with windows"])
def asking(kvmd: PrivateDaemon, request: pytest.FixtureRequest) -> Iterator[Asking]:
    made = Asking(kvmd.socket, request.param)
    yield made
    made.peer.close()


def test_a_request_waits_for_the_import_of_the_same_prefix(asking: Asking) -> None:
    asking.load(request("a", 1))
    assert asking.ask(request("b", 2)) is None
    assert asking.ask(request("b", 2)) is None
    asking.side.loaded({"a"}, ())
    # vLLM now has the prefix in its own cache; what it lacks is imported
    assert asking.ask(request("b", 2), computed=len(PREFIX)) == 0
    assert asking.ask(request("c", 3)) == len(PREFIX)


def test_nobody_waits_for_an_import_that_has_failed(asking: Asking) -> None:
    asking.load(request("a", 1))
    assert asking.ask(request("b", 2)) is None
    if len(asking.side._groups) > 1:
        asking.side.failed_requests({"a"})
    else:
        asking.side.failed(set(asking.side._requests.by_id["a"].tables[0].blocks))
    asking.side.loaded({"a"}, ())
    assert asking.ask(request("b", 2)) == len(PREFIX)


def test_nobody_waits_for_a_request_that_has_ended(asking: Asking) -> None:
    first = request("a", 1)
    asking.load(first)
    assert asking.ask(request("b", 2)) is None
    asking.side.finished(first)
    assert asking.ask(request("b", 2)) == len(PREFIX)


def test_nobody_waits_for_a_request_that_the_engine_asks_for_again(asking: Asking) -> None:
    """It then loads nothing: the engine has freed its blocks."""
    first = request("a", 1)
    asking.load(first)
    assert asking.ask(request("b", 2)) is None
    assert asking.ask(first) == len(PREFIX)
    assert asking.ask(request("b", 2)) == len(PREFIX)


def test_a_request_that_waits_does_not_wait_for_another_one_that_waits(asking: Asking) -> None:
    first = request("a", 1)
    asking.load(first)
    second, third = request("b", 2), request("c", 3)
    assert asking.ask(second) is None
    assert asking.ask(third) is None
    asking.side.finished(second)
    assert asking.ask(third) is None
    asking.side.finished(first)
    assert asking.ask(third) == len(PREFIX)


def test_a_wait_is_bounded_in_all(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("kvclient.vllm.scheduler.time.perf_counter", lambda: clock)
    asking.load(request("a", 1))
    assert asking.ask(request("b", 2)) is None
    clock += asking.side._options.import_timeout_s - 0.001
    assert asking.ask(request("b", 2)) is None
    asking.side.loaded({"a"}, ())
    asking.load(request("c", 3))
    assert asking.ask(request("b", 2)) is None
    clock += 0.002
    assert asking.ask(request("b", 2)) == len(PREFIX)


def test_a_request_that_shares_less_than_half_of_its_import_does_not_wait(asking: Asking) -> None:
    asking.load(request("a", 1, prefix=PREFIX[:16]))
    assert asking.ask(request("b", 2)) == len(PREFIX)
    asking.side.loaded({"a"}, ())
    asking.load(request("c", 1, prefix=[*PREFIX[:20], *range(7, 27)]))
    assert asking.ask(request("d", 2)) is None


def test_other_prefixes_and_other_salts_do_not_wait(asking: Asking) -> None:
    asking.load(request("a", 1))
    salted = request("b", 2)
    salted.cache_salt = "salt"
    assert asking.ask(salted) == 0
    assert asking.ask(request("c", prefix=list(range(50)))) == 0


def test_a_load_that_the_step_waits_for_needs_no_wait(kvmd: PrivateDaemon) -> None:
    """Such blocks are found for others from the same step on."""
    asking = Asking(kvmd.socket, load="sync")
    asking.load(request("a", 1))
    assert asking.ask(request("b", 2)) == len(PREFIX)
    asking.peer.close()


def tracked(name: str, tokens: list[int]) -> TrackedRequest:
    made = Request(name, tokens, 1)
    keys = RequestKeys(KeySource(SPEC, [kvclient.Shard()]), made)
    keys.upto(len(tokens) // BLOCK_TOKENS)
    return TrackedRequest(made, keys)


@pytest.mark.parametrize("equal_blocks", range(1, 13))
def test_how_much_is_shared_is_found(equal_blocks: int) -> None:
    """``b`` waits if half of what it would import comes with ``a``."""
    tokens = list(range(48))
    other = [*tokens[: 4 * equal_blocks], *range(200, 248)][:48]
    for found in range(1, 13):
        equal = EqualPrefixes(4, 4, 10.0)
        equal.began(tracked("a", tokens), 0, 12)
        assert equal.waits(tracked("b", other), 0, found, 12, 1.0) == (2 * equal_blocks >= found)


def test_of_two_equal_imports_the_first_is_waited_for_and_either_may_end_first() -> None:
    for order in (("a", "b"), ("b", "a")):
        equal = EqualPrefixes(4, 4, 10.0)
        for name in ("a", "b"):
            equal.began(tracked(name, PREFIX), 0, 10)
        third = tracked("c", PREFIX)
        assert equal.waits(third, 0, 10, 10, 1.0)
        for name in order:
            equal.ended(name)
        assert not equal.waits_still(third, 1.0)
        assert not equal.waits(third, 0, 10, 10, 1.0)


@pytest.mark.parametrize(("windows", "runner"), [((0,), "v1"), ((0,), "v2"), ((0, 9), "v2")])
def test_an_engine_copies_the_prefix_of_equal_requests_once(
    kvmd: PrivateDaemon, windows: tuple[int, ...], runner: str
) -> None:
    first, second = (
        Engine(kvmd.socket, name, seed, windows=windows, blocks=120, runner=runner)
        for seed, name in enumerate(("first", "second"))
    )
    first.random.random = second.random.random = lambda: 0.5  # type: ignore[method-assign]  # nothing is preempted
    tokens = list(PREFIX)
    first.submit([*tokens, 1], 2)
    first.drain()
    first.step()
    first.worker.region.flush(60.0)
    full = sum(len(tokens) // BLOCK_TOKENS - KvGroup(window).first_block(40, BLOCK_TOKENS) for window in windows)
    probe = Request("probe", [*tokens, 1], 1)
    eventually(lambda: second.scheduler.matched_tokens(probe, 0)[0] == len(tokens), 6000)
    second.scheduler.finished(probe)
    for number in range(4):
        second.submit([*tokens, number], 2)
    second.drain()
    assert second.finished == 4
    assert second.wrong == second.worker.read_wrong == 0
    assert second.client.stats().blocks_imported == full
    assert second.asked_to_wait > 0
