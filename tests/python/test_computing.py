"""Blocks that are being computed: marks in Python, and what the vLLM connector's scheduler makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kvclient
from kvclient import BlockKeys, Geometry, KeyChain
from kvclient.daemon import PrivateDaemon
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.scheduler import SchedulerSide
from support.paged_pool import Pool
from support.paged_step import Output, Request
from support.specs import small_spec
from support.waiting import eventually

SPEC = small_spec()
PROMPT = list(range(32))
LAST = 28  # tokens that may be imported: the last block is computed in any case


@pytest.fixture
def peer(kvmd: PrivateDaemon) -> Iterator[kvclient.Client]:
    with kvclient.Client(kvmd.socket, name="peer") as client:
        yield client


def keys_of(tokens: list[int]) -> BlockKeys:
    return KeyChain(SPEC).extend(tokens)


def publish(client: kvclient.Client, tokens: list[int]) -> kvclient.Region:
    region = client.allocate_region(client.declare_model(SPEC), Geometry.contiguous(8, 256), name="offered")
    keys = keys_of(tokens)
    region.publish_run(keys, KeyChain(SPEC).parent, 0, region.begin_writes(list(range(len(keys)))))
    region.flush()
    return region


def engine(kvmd: PrivateDaemon, name: str, wait_s: float) -> SchedulerSide:
    options = ConnectorOptions(socket=kvmd.socket, min_prefix_tokens=4, wait_for_computing_s=wait_s)
    made = SchedulerSide(options)
    client = kvclient.Client(kvmd.socket, name=name)
    client.declare_model(SPEC)
    made.attach(client, SPEC, [kvclient.Shard()])
    made.bind_pool(Pool(32))
    return made


def answer(side: SchedulerSide, request: Any) -> tuple[int | None, bool]:
    """The one after kvmd has said whose turn it is."""
    said = side.matched_tokens(request, 0)
    asked = side._computing._asked.get(request.request_id)
    if asked is not None:
        eventually(lambda: asked.mark.answered)
        said = side.matched_tokens(request, 0)
    return said


# ---- in Python ----


def test_a_lookup_shows_who_computes_the_missing_blocks(kvmd: PrivateDaemon, peer: kvclient.Client) -> None:
    keys = keys_of(PROMPT)
    with kvclient.Client(kvmd.socket, name="computing") as computing:
        assert peer.find(keys, computing=True).being_computed is None
        with computing.mark_computing(keys, 30) as mark:
            mark.wait()
            seen = peer.find(keys, computing=True).being_computed
            assert seen is not None
            assert (seen.blocks, seen.client_id, seen.own) == (len(keys), computing.client_id, False)
            assert 0 < seen.left_s <= 30
            assert peer.find(keys).being_computed is None
        eventually(lambda: peer.find(keys, computing=True).being_computed is None)


def test_a_wait_returns_the_blocks_once_they_are_there(kvmd: PrivateDaemon, peer: kvclient.Client) -> None:
    keys = keys_of(PROMPT)
    peer.declare_model(SPEC)
    with kvclient.Client(kvmd.socket, name="computing") as computing:
        mark = computing.mark_computing(keys, 30)
        mark.wait()
        assert len(peer.find_waiting(keys, 0.01)) == 0
        region = publish(computing, PROMPT)
        mark.end()
        eventually(lambda: len(peer.find_waiting(keys, 60)) == len(keys))
        assert peer.stats().computing_waits_in_vain == 1
        del region


def test_without_kvmd_nothing_is_marked() -> None:
    with kvclient.Client("/nonexistent/kvmd.sock", start_offline=True) as client:
        mark = client.mark_computing(keys_of(PROMPT), 30)
        assert mark.answered
        with pytest.raises(kvclient.errors.UnavailableError):
            mark.wait()
        assert len(client.find_waiting(keys_of(PROMPT), 60)) == 0


# ---- in the scheduler ----


def test_an_engine_that_does_not_wait_marks_nothing(kvmd: PrivateDaemon, peer: kvclient.Client) -> None:
    side = engine(kvmd, "engine", 0.0)
    assert side.matched_tokens(Request("r", PROMPT, 1), 0) == (0, False)
    assert peer.find(keys_of(PROMPT), computing=True).being_computed is None


def test_of_two_engines_with_one_prompt_one_computes_and_the_other_is_asked_again(kvmd: PrivateDaemon) -> None:
    first, second = engine(kvmd, "first", 600.0), engine(kvmd, "second", 600.0)
    mine: Any = Request("a", PROMPT, 1)
    theirs: Any = Request("b", PROMPT, 1)
    assert answer(first, mine) == (0, False)
    assert answer(second, theirs) == (None, False)
    # What the first one computes is found as ever.
    with kvclient.Client(kvmd.socket, name="worker") as worker:
        region = publish(worker, PROMPT)
        eventually(lambda: second.matched_tokens(theirs, 0) == (LAST, True))
        del region


def test_a_request_waits_no_longer_than_the_engine_says(kvmd: PrivateDaemon, peer: kvclient.Client) -> None:
    mark = peer.mark_computing(keys_of(PROMPT), 60)
    mark.wait()
    side = engine(kvmd, "engine", 600.0)
    request: Any = Request("r", PROMPT, 1)
    assert answer(side, request) == (None, False)
    side._computing._asked["r"].since -= 601
    assert side.matched_tokens(request, 0) == (0, False)
    # The other engine's marks cost the next request nothing.
    assert answer(side, Request("next", PROMPT, 1)) == (0, False)


def test_a_wait_ends_with_the_other_engines_request(kvmd: PrivateDaemon) -> None:
    first, second = engine(kvmd, "first", 600.0), engine(kvmd, "second", 600.0)
    mine: Any = Request("a", PROMPT, 1)
    theirs: Any = Request("b", PROMPT, 1)
    assert answer(first, mine) == (0, False)
    assert answer(second, theirs) == (None, False)
    first.finished(mine)
    eventually(lambda: second.matched_tokens(theirs, 0) == (0, False))


def test_a_request_of_one_token_is_waited_for_until_its_blocks_are_published(kvmd: PrivateDaemon) -> None:
    """Its prompt is computed when it ends, and published in the steps after that.

    Seen to fail with marks that end with the request: the other engine is told to compute.
    """
    first, second = engine(kvmd, "first", 600.0), engine(kvmd, "second", 600.0)
    mine: Any = Request("a", PROMPT, 1)
    theirs: Any = Request("b", PROMPT, 1)
    assert answer(first, mine) == (0, False)
    assert answer(second, theirs) == (None, False)
    mine.num_computed_tokens = len(PROMPT)
    first.finished(mine)
    assert first._client is not None
    # Once it is answered, kvmd has read all that was sent before
    first._client.mark_computing(keys_of(PROMPT[::-1]), 60).wait()
    with kvclient.Client(kvmd.socket, name="looks") as looks:
        looks.declare_model(SPEC)
        assert looks.find(keys_of(PROMPT), computing=True).being_computed is not None
        assert second.matched_tokens(theirs, 0) == (None, False)
        for _ in range(8):
            first.plan(Output())
        eventually(lambda: looks.find(keys_of(PROMPT), computing=True).being_computed is None)
    assert second.matched_tokens(theirs, 0) == (0, False)


class Between:
    """A client before whose first lookup of marks something happens."""

    def __init__(self, client: kvclient.Client, happens: Callable[[], object]) -> None:
        self._client, self._happens = client, happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def find(self, keys: BlockKeys, **options: Any) -> kvclient.Match:
        happens, self._happens = self._happens, lambda: None
        happens()
        return self._client.find(keys, **options)


def test_a_wait_that_ends_between_the_lookup_of_blocks_and_of_marks_has_not_been_in_vain(
    kvmd: PrivateDaemon, peer: kvclient.Client
) -> None:
    first, second = engine(kvmd, "first", 600.0), engine(kvmd, "second", 600.0)
    mine: Any = Request("a", PROMPT, 1)
    theirs: Any = Request("b", PROMPT, 1)
    assert answer(first, mine) == (0, False)
    assert answer(second, theirs) == (None, False)
    regions = []

    def computed() -> None:
        regions.append(publish(peer, PROMPT))
        first.finished(mine)
        assert second._client is not None
        eventually(lambda: len(second._client.find(keys_of(PROMPT))) == len(PROMPT) // 4)

    assert second._admission is not None
    assert second._client is not None
    second._admission._client = Between(second._client, computed)  # type: ignore[assignment]
    assert second.matched_tokens(theirs, 0) == (None, False)
    assert regions
    assert second.matched_tokens(theirs, 0) == (LAST, True)


def test_the_marks_of_an_engine_end_when_it_leaves(kvmd: PrivateDaemon, peer: kvclient.Client) -> None:
    side = engine(kvmd, "engine", 600.0)
    assert answer(side, Request("r", PROMPT, 1)) == (0, False)
    assert peer.find(keys_of(PROMPT), computing=True).being_computed is not None
    side.leave()
    eventually(lambda: peer.find(keys_of(PROMPT), computing=True).being_computed is None)


def test_the_mark_of_a_prompt_that_is_computed_ends_a_few_steps_later(
    kvmd: PrivateDaemon, peer: kvclient.Client
) -> None:
    side = engine(kvmd, "engine", 600.0)
    request: Any = Request("r", PROMPT, 1)
    assert answer(side, request) == (0, False)
    for _ in range(8):
        side.plan(Output())
    assert peer.find(keys_of(PROMPT), computing=True).being_computed is not None
    request.num_computed_tokens = len(PROMPT)
    for _ in range(8):
        side.plan(Output())
    eventually(lambda: peer.find(keys_of(PROMPT), computing=True).being_computed is None)


# ---- sampled checksums ----


def test_a_damaged_block_of_the_sample_is_refused_and_counted(kvmd: PrivateDaemon) -> None:
    with (
        kvclient.Client(kvmd.socket, name="owner", verify_one_in=1) as owner,
        kvclient.Client(kvmd.socket, name="reader", verify_one_in=1) as reader,
    ):
        region = publish(owner, PROMPT)
        model = reader.declare_model(SPEC)
        pool = reader.allocate_region(model, Geometry.contiguous(8, 256), name="pool")
        keys = keys_of(PROMPT)
        eventually(lambda: len(reader.find(keys)) == len(keys))
        region.write_bytes(0, 3 * 256 + 5, b"\x01")
        result = reader.import_blocks(reader.find(keys), pool, list(range(8))).wait(10)
        assert result.valid == 3
        assert result.failed[0].reason == kvclient.ImportFailure.CORRUPT
        assert reader.stats().blocks_corrupt == 1
