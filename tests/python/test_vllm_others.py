"""Other connectors beside ours, and requests that keep out: what the scheduler's side makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.errors import UnsupportedError
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.runner import before_each_step
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.wishes import answer_of_prefill, prefilled_of, source_hint_of, wishes_of
from support.paged_pool import Pool
from support.paged_step import NewRequest, Output, Request
from support.specs import small_spec

SPEC = small_spec()


@pytest.fixture
def side(kvmd: PrivateDaemon) -> SchedulerSide:
    made = SchedulerSide(ConnectorOptions(socket=kvmd.socket, min_prefix_tokens=4))
    made.attach(kvclient.Client(kvmd.socket, name="s"), SPEC, [kvclient.Shard()])
    made.bind_pool(Pool(32))
    return made


def allocated(side: SchedulerSide, name: str, tokens: list[int], outside: int = 0, **fields: Any) -> Any:
    """A request with its blocks, hashed; ``outside``: tokens that another connector gives it."""
    made: Any = Request(name, tokens, 8)
    for field, value in fields.items():
        setattr(made, field, value)
    assert side.matched_tokens(made, 0) == (0, False)
    made.blocks = side._pool.take(-(-len(tokens) // 4))
    for index in range(len(tokens) // 4):
        side._pool.cache(made.blocks[index], made.content(index))
    side.given(made, lambda: ids(made))
    made.num_computed_tokens = outside
    return made


def ids(request: Any) -> list[int]:
    return [block.block_id for block in request.blocks]


def started(request: Any) -> Output:
    return Output(
        scheduled_new_reqs=[NewRequest(request.request_id, (ids(request),))],
        num_scheduled_tokens={request.request_id: request.num_tokens - request.num_computed_tokens},
    )


def test_blocks_that_another_connector_writes_in_the_background_are_withdrawn(side: SchedulerSide) -> None:
    made = allocated(side, "r", list(range(10)), outside=8)
    assert sorted(side.plan(Output()).begin) == sorted(ids(made))


def test_blocks_of_a_load_in_the_background_are_published_once_it_runs(side: SchedulerSide) -> None:
    made = allocated(side, "r", list(range(10)), outside=8)
    side.plan(Output())
    side.given(made, lambda: ids(made))  # vLLM allocates the rest when it runs
    side.plan(started(made))
    made.num_computed_tokens, made.num_in_flight_tokens = 10, 2
    [run] = side.plan(Output()).publish
    assert run.blocks == ids(made)[:2]


def test_nothing_is_published_while_a_step_waits_for_another_connectors_load(side: SchedulerSide) -> None:
    """The load may fail, and others may have taken its blocks as their prefix by then."""
    loading = allocated(side, "loading", list(range(10)), outside=8)
    side.plan(started(loading))
    plain = allocated(side, "plain", list(range(50, 60)))
    side.plan(started(plain))
    plain.num_computed_tokens = 10
    loading.num_computed_tokens, loading.num_in_flight_tokens = 10, 2
    assert side.plan(Output()).publish == []
    loading.num_in_flight_tokens = 0
    assert sorted(run.blocks for run in side.plan(Output()).publish) == sorted([ids(loading)[:2], ids(plain)[:2]])


def test_a_request_that_ends_does_not_keep_others_waiting(side: SchedulerSide) -> None:
    loading = allocated(side, "loading", list(range(10)), outside=8)
    side.plan(started(loading))
    plain = allocated(side, "plain", list(range(50, 60)))
    side.plan(started(plain))
    plain.num_computed_tokens = 10
    side.finished(loading)
    assert [run.blocks for run in side.plan(Output()).publish] == [ids(plain)[:2]]


# ---- requests that keep out ----


@pytest.mark.parametrize(
    ("params", "wishes"),
    [
        (None, (True, True)),
        ({"do_remote_decode": True}, (True, True)),
        ({"kvmarket": {"publish": False}}, (False, True)),
        ({"kvmarket": {"import": False}}, (True, False)),
        ({"kvmarket": False}, (False, False)),
        ({"kvmarket": {"publish": "no"}}, (False, False)),
        ({"kvmarket": {"publsh": False}}, (False, False)),
        ({"kvmarket": "off"}, (False, False)),
    ],
)
def test_a_request_may_keep_out_and_nonsense_keeps_it_out(params: Any, wishes: tuple[bool, bool]) -> None:
    made: Any = Request("r", [1], 1)
    made.kv_transfer_params = params
    assert wishes_of(made) == wishes


@pytest.mark.parametrize(
    ("params", "hints", "host"),
    [
        (None, None, ""),
        (
            {"remote_kv_source": {"kv_request_id": "r", "remote_host": "192.0.2.7", "remote_port": 5710}},
            None,
            "192.0.2.7",
        ),
        ({"remote_kv_source": {"remote_host": 7}}, None, ""),
        ({"remote_kv_source": "192.0.2.7"}, None, ""),
        (None, [("kv.fetch", {"source_control_endpoint": "tcp://192.0.2.8:25000"})], "192.0.2.8"),
        (None, [("kv.fetch", {"source_control_endpoint": "tcp://[2001:db8::8]:25000"})], "2001:db8::8"),
        (None, [("kv.drop", {"source_control_endpoint": "tcp://192.0.2.8:1"}), ("kv.fetch", {})], ""),
        (None, [("kv.fetch", {"source_control_endpoint": 5}), ("kv.fetch", "payload")], ""),
    ],
)
def test_a_routers_hint_names_a_host(params: Any, hints: Any, host: str) -> None:
    request = SimpleNamespace(kv_transfer_params=params)
    if hints is not None:
        actions = [SimpleNamespace(action_type=kind, payload=payload) for kind, payload in hints]
        request.kv_hints = SimpleNamespace(actions=actions)
    assert source_hint_of(request) == host


@pytest.mark.parametrize("ends", [False, True])
def test_a_request_that_says_so_has_nothing_published(side: SchedulerSide, ends: bool) -> None:
    made = allocated(side, "r", list(range(10)), kv_transfer_params={"kvmarket": {"publish": False}})
    side.plan(started(made))
    made.num_computed_tokens = 10
    if ends:
        side.finished(made)
    assert side.plan(Output()).publish == []


def test_a_request_that_says_so_has_nothing_imported(kvmd: PrivateDaemon, side: SchedulerSide) -> None:
    peer = kvclient.Client(kvmd.socket, name="peer")
    region = peer.allocate_region(peer.declare_model(SPEC), kvclient.Geometry.contiguous(8, 256), name="offered")
    chain = kvclient.KeyChain(SPEC)
    root = chain.parent
    region.publish_run(list(chain.extend(list(range(32)))), root, 0, region.begin_writes(list(range(8))))
    region.flush()
    assert side._client is not None
    side._client.declare_model(SPEC)
    taking: Any = Request("taking", list(range(32)), 1)
    assert side.matched_tokens(taking, 0) == (28, True)
    computing: Any = Request("computing", list(range(32)), 1)
    computing.kv_transfer_params = {"kvmarket": {"import": False}}
    assert side.matched_tokens(computing, 0) == (0, False)
    peer.close()


# ---- prefill and decode in two engines ----


def test_a_decode_engine_asks_again_until_what_a_prefill_engine_says_is_found(
    kvmd: PrivateDaemon, side: SchedulerSide
) -> None:
    decoding: Any = Request("r", list(range(32)), 1)
    decoding.kv_transfer_params = {"kvmarket_prefilled": 32}
    assert side._admission is not None
    side._admission._options = ConnectorOptions(socket=kvmd.socket, min_prefix_tokens=4, prefill_wait_s=600.0)
    assert side.matched_tokens(decoding, 0) == (None, False)
    peer = kvclient.Client(kvmd.socket, name="peer")
    region = peer.allocate_region(peer.declare_model(SPEC), kvclient.Geometry.contiguous(8, 256), name="prefill")
    chain = kvclient.KeyChain(SPEC)
    root, keys = chain.parent, list(chain.extend(list(range(32))))
    region.publish_run(keys[:4], root, 0, region.begin_writes(list(range(4))))
    region.flush()
    assert side._client is not None
    side._client.declare_model(SPEC)
    assert side.matched_tokens(decoding, 0) == (None, False)
    region.publish_run(keys[4:], keys[3], 4, region.begin_writes(list(range(4, 8))))
    region.flush()
    assert side.matched_tokens(decoding, 0) == (28, True)
    peer.close()


@pytest.mark.parametrize("params", [{"kvmarket_prefilled": 32}, {"kvmarket_prefilled": "32"}, {}])
def test_a_decode_engine_computes_what_is_not_found_in_the_end(side: SchedulerSide, params: dict[str, Any]) -> None:
    decoding: Any = Request("r", list(range(32)), 1)
    decoding.kv_transfer_params = params
    assert side._admission is not None
    side._admission._options = ConnectorOptions(socket="/none", min_prefix_tokens=4, prefill_wait_s=0.0)
    assert side.matched_tokens(decoding, 0) == (0, False)


@pytest.mark.parametrize(
    ("params", "answer"),
    [({"do_remote_decode": True}, 8), ({"do_remote_decode": True, "kvmarket": False}, 0), ({}, 0), (None, 0)],
)
def test_a_prefill_engine_answers_how_much_is_about_to_be_found(
    side: SchedulerSide, params: dict[str, Any] | None, answer: int
) -> None:
    made = allocated(side, "r", list(range(10)), kv_transfer_params=params)
    side.plan(started(made))
    made.num_computed_tokens = 10
    said = answer_of_prefill(made, side.finished(made))
    assert said == ({"kvmarket_prefilled": answer} if answer else None)
    made.kv_transfer_params = said
    assert prefilled_of(made) == answer


# ---- loads that begin early ----


@pytest.mark.parametrize(("written", "early"), [(None, True), ([3], True), ([21], False)])
def test_a_load_begins_early_unless_the_step_writes_to_its_blocks(
    side: SchedulerSide, written: list[int] | None, early: bool
) -> None:
    loading: Any = Request("l", list(range(20, 32)), 1)
    side.matched_tokens(loading, 0)
    side.allocated(loading, ([20, 21, 22],), 8)
    output = Output()
    output.new_block_ids_to_zero = written
    assert [load.early for load in side.plan(output).loads] == [early]


# ---- before the model runner touches a block ----


class Runner:
    """As a worker of vLLM holds one."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.model_runner = self

    def execute_model(self, output: Any, intermediate: Any = None, *, dummy_run: bool = False) -> str:
        self.events.append(("blocks are written", output.kv_connector_metadata, intermediate, dummy_run))
        return "result"


def test_a_step_begins_with_the_call_and_is_otherwise_the_same() -> None:
    runner = Runner()
    before_each_step(runner, lambda metadata: runner.events.append(("called", metadata)))
    assert runner.execute_model(SimpleNamespace(kv_connector_metadata="plan"), "tensors") == "result"
    assert runner.events == [("called", "plan"), ("blocks are written", "plan", "tensors", False)]
    runner.events.clear()
    runner.execute_model(SimpleNamespace(kv_connector_metadata=None), dummy_run=True)
    assert runner.events == [("blocks are written", None, None, True)]


def test_a_worker_whose_steps_can_not_be_seen_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="execute_model"):
        before_each_step(SimpleNamespace(model_runner=SimpleNamespace()), lambda _: None)
    with pytest.raises(UnsupportedError, match="execute_model"):
        before_each_step(SimpleNamespace(), lambda _: None)
