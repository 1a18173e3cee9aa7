"""What changes while an engine runs: weights, adapters, kvmd. The connector's two sides, without vLLM."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.errors import DeadlineExceededError, InvalidArgumentError
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.layout import KvLayout, read_layout
from kvclient.vllm.near_misses import NearMissLog
from kvclient.vllm.plan import PublishRun, StepPlan
from kvclient.vllm.retried import Retried
from kvclient.vllm.runner import uses_v2_runner
from kvclient.vllm.running_model import Now
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.spec import with_weights
from kvclient.vllm.worker import WorkerSide
from support.paged_pool import Pool
from support.paged_step import NewRequest, Output, Request
from support.specs import small_spec
from support.waiting import eventually

SPEC = small_spec(weights_digest="config=1")
OLD, NEW = with_weights(SPEC, "old"), with_weights(SPEC, "new")
TOKENS = list(range(100, 132))


class Engine:
    """A scheduler's side over a pool, and the model that it is told."""

    def __init__(self, socket: str) -> None:
        self.model: kvclient.ModelSpec | None = OLD
        self.registered = True
        self.doubts = 0
        self.pool = Pool(64)
        self.client = kvclient.Client(socket, name="engine")
        self.side = SchedulerSide(ConnectorOptions(socket=socket, min_prefix_tokens=4))
        self.side.attach(self.client, OLD, [kvclient.Shard()], model=self.now)
        self.side.bind_pool(self.pool)
        self.declare()

    def now(self, reset: bool) -> Now:
        return Now(self.model, self.registered, self.doubts)

    def declare(self) -> None:
        """What has been published before is found from here on."""
        for spec in (OLD, NEW):
            self.client.declare_model(spec)

    def ask(self, request: Request, computed: int = 0) -> int:
        return self.side.matched_tokens(request, computed)[0]

    def begin(self, request: Request) -> StepPlan:
        """The request's first step; as vLLM, hashes are there before the blocks are computed."""
        request.blocks = self.pool.take(len(request.all_token_ids) // 4)
        for index, block in enumerate(request.blocks):
            self.pool.cache(block, request.content(index))
        return self.side.plan(Output(scheduled_new_reqs=[NewRequest(request.request_id, (ids_of(request),))]))

    def step(self, request: Request) -> list[PublishRun]:
        """What the next step publishes once all of the request has been computed."""
        request.num_computed_tokens = len(request.all_token_ids)
        return self.side.plan(Output()).publish

    def run(self, request: Request) -> list[PublishRun]:
        self.ask(request)
        self.begin(request)
        return self.step(request)


def ids_of(request: Request) -> list[int]:
    return [block.block_id for block in request.blocks]


def keys(spec: kvclient.ModelSpec, tokens: list[int]) -> list[kvclient.BlockKey]:
    return list(kvclient.KeyChain(spec).extend(tokens))


@pytest.fixture
def engine(kvmd: PrivateDaemon) -> Iterator[Engine]:
    made = Engine(kvmd.socket)
    yield made
    made.client.close()


@pytest.fixture
def peers(kvmd: PrivateDaemon, engine: Engine) -> Iterator[None]:
    """Peers with the old weights and with the new ones, that have published TOKENS."""
    client = kvclient.Client(kvmd.socket, name="peers")
    regions = []
    for name, spec in (("old", OLD), ("new", NEW)):
        region = client.allocate_region(client.declare_model(spec), kvclient.Geometry.contiguous(8, 256), name=name)
        region.publish_run(keys(spec, TOKENS), kvclient.KeyChain(spec).parent, 0, region.begin_writes(list(range(8))))
        region.flush()
        regions.append(region)
    engine.declare()
    yield
    regions.clear()
    client.close()


# ---- weights ----


def test_blocks_are_published_under_the_keys_of_the_weights_that_computed_them(engine: Engine) -> None:
    [run] = engine.run(Request("a", list(range(8)), 1))
    assert list(run.keys[0]) == keys(OLD, list(range(8)))
    engine.pool.reset()
    engine.pool.give_back(engine.side._requests.by_id["a"].request.blocks)
    engine.side.finished(engine.side._requests.by_id["a"].request)
    engine.model = NEW
    [run] = engine.run(Request("b", list(range(8)), 1))
    assert list(run.keys[0]) == keys(NEW, list(range(8)))


def test_what_was_computed_before_the_weights_changed_is_published_under_no_key(engine: Engine) -> None:
    request = Request("a", list(range(8)), 1)
    engine.ask(request)
    engine.begin(request)
    engine.model = NEW
    assert engine.step(request) == []
    assert engine.step(request) == []


def test_what_has_ended_when_the_weights_change_is_published_under_no_key(engine: Engine) -> None:
    request = Request("a", list(range(8)), 1)
    engine.ask(request)
    engine.begin(request)
    request.num_computed_tokens = 8
    engine.side.finished(request)
    engine.model = NEW
    assert engine.side.plan(Output()).publish == []


def test_nothing_is_shared_until_blocks_of_the_old_weights_are_gone(
    engine: Engine, peers: None, caplog: pytest.LogCaptureFixture
) -> None:
    old = Request("a", list(range(8)), 1)
    engine.run(old)
    engine.model = NEW
    assert engine.ask(Request("b", TOKENS, 1)) == 0
    assert engine.run(Request("c", list(range(8, 16)), 1)) == []
    assert "nothing is shared until it is reset" in caplog.text
    engine.pool.reset()
    assert engine.ask(Request("d", TOKENS, 1)) == 28
    [run] = engine.run(Request("e", list(range(8)), 1))
    assert list(run.keys[0]) == keys(NEW, list(range(8)))


def test_a_request_that_ran_through_the_change_publishes_nothing_even_after_a_reset(engine: Engine) -> None:
    request = Request("a", list(range(8)), 9)
    engine.ask(request)
    engine.begin(request)
    engine.model = NEW
    engine.side.plan(Output())
    engine.pool.reset()
    for index, block in enumerate(request.blocks):
        engine.pool.cache(block, request.content(index))
    assert engine.step(request) == []


def test_an_engine_whose_pool_is_empty_shares_at_once_with_those_that_have_its_new_weights(
    engine: Engine, peers: None
) -> None:
    assert engine.ask(Request("a", TOKENS, 1)) == 28
    engine.model = NEW
    assert engine.ask(Request("b", TOKENS, 1)) == 28
    engine.model = with_weights(SPEC, "nobody's")
    assert engine.ask(Request("c", TOKENS, 1)) == 0


def test_while_the_weights_are_not_known_nothing_is_shared_but_reused_blocks_are_withdrawn(
    engine: Engine, peers: None
) -> None:
    request = Request("a", list(range(8)), 1)
    engine.run(request)
    engine.model = None
    assert engine.ask(Request("b", TOKENS, 1)) == 0
    assert engine.run(Request("c", list(range(8, 16)), 1)) == []
    engine.pool.evict(request.blocks[0])
    again = Output(scheduled_new_reqs=[NewRequest("d", ([ids_of(request)[0]],))])
    assert engine.side.plan(again).begin == [ids_of(request)[0]]
    engine.model = OLD
    assert engine.ask(Request("e", TOKENS, 1)) == 28


def test_weights_that_come_and_go_while_no_memory_is_registered_are_not_forgotten(engine: Engine, peers: None) -> None:
    """Its blocks would pass for the first weights' otherwise, which the engine has again in the end."""
    engine.run(Request("a", list(range(8)), 1))
    engine.model, engine.registered = NEW, False
    assert engine.run(Request("b", list(range(8, 16)), 1)) == []
    engine.model, engine.registered = OLD, True
    assert engine.ask(Request("c", TOKENS, 1)) == 0
    assert engine.run(Request("d", list(range(16, 24)), 1)) == []
    engine.pool.reset()
    assert engine.ask(Request("e", TOKENS, 1)) == 28


# The engine measures its weights while steps go on; meanwhile they are in doubt.


def test_a_request_waits_while_the_weights_are_measured(engine: Engine, peers: None) -> None:
    engine.model, engine.registered, engine.doubts = None, False, 1
    asked, local = Request("a", TOKENS, 1), Request("b", TOKENS, 1)
    local.kv_transfer_params = {"kvmarket": {"import": False}}
    assert engine.side.matched_tokens(asked, 0) == (None, False)
    assert engine.side.matched_tokens(local, 0) == (0, False)
    engine.model, engine.registered = OLD, True
    assert engine.ask(asked) == 28


def test_an_engine_that_computes_nothing_leaves_the_interpreter_to_who_measures(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    engine.model, engine.registered, engine.doubts = None, False, 1
    for computes, pauses in (({"b": 1}, 0), ({}, 1)):
        engine.side.plan(Output(num_scheduled_tokens=computes))
        assert engine.side.matched_tokens(Request("a", TOKENS, 1), 0) == (None, False)
        assert len(slept) == pauses


def test_what_was_computed_in_doubt_is_published_under_the_keys_of_what_was_measured(engine: Engine) -> None:
    engine.pool.reset()
    engine.model, engine.registered, engine.doubts = None, False, 1
    assert engine.run(Request("a", list(range(8)), 1)) == []
    engine.model, engine.registered = NEW, True
    [run] = engine.run(Request("b", list(range(8, 16)), 1))
    assert list(run.keys[0]) == keys(NEW, list(range(8, 16)))


def test_what_the_pool_had_before_the_doubt_is_of_the_old_weights(engine: Engine, peers: None) -> None:
    engine.run(Request("a", list(range(8)), 1))
    engine.model, engine.registered, engine.doubts = None, False, 1
    engine.side.plan(Output())
    engine.model, engine.registered = NEW, True
    assert engine.ask(Request("b", TOKENS, 1)) == 0
    engine.pool.reset()
    engine.doubts = 2
    assert engine.ask(Request("c", TOKENS, 1)) == 28


def test_weights_that_come_and_go_without_being_measured_are_not_forgotten(engine: Engine, peers: None) -> None:
    """Steps ran with weights that are never known, and the engine has the first ones again in the end."""
    engine.model, engine.registered, engine.doubts = None, False, 1
    engine.run(Request("a", list(range(8)), 1))
    engine.doubts = 2
    engine.side.plan(Output())
    engine.model, engine.registered = OLD, True
    assert engine.ask(Request("b", TOKENS, 1)) == 0
    assert engine.run(Request("c", list(range(16, 24)), 1)) == []
    engine.pool.reset()
    assert engine.ask(Request("d", TOKENS, 1)) == 28


def test_what_left_with_its_memory_is_published_again_once_memory_is_registered(engine: Engine) -> None:
    """As after sleep, where kvmd answers late: the engine's own cache may still have the blocks."""
    first = Request("a", list(range(8)), 1)
    [run] = engine.run(first)
    engine.registered = False
    assert engine.step(first) == []
    engine.registered = True
    again = Request("b", list(range(8)), 1)
    engine.ask(again)
    again.blocks = first.blocks
    engine.side.plan(Output(scheduled_new_reqs=[NewRequest("b", (ids_of(again),))]))
    assert [each.blocks for each in engine.step(again)] == [run.blocks]


# ---- adapters ----


def with_lora(request: Request, path: Path, *, load_inplace: bool = False) -> Request:
    request.lora_request = SimpleNamespace(  # type: ignore[assignment]
        lora_name="x", lora_path=str(path), lora_int_id=1, load_inplace=load_inplace
    )
    return request


def adapter(path: Path, content: bytes) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_model.safetensors").write_bytes(content)
    return path


def test_an_adapter_that_is_replaced_in_place_gets_new_keys(engine: Engine, tmp_path: Path) -> None:
    path = adapter(tmp_path / "x", b"1")
    [first] = engine.run(with_lora(Request("a", list(range(8)), 1), path))
    adapter(path, b"2")
    running = engine.side._requests.by_id["a"]
    replaced = with_lora(Request("b", list(range(8, 16)), 1), path, load_inplace=True)
    [second] = engine.run(replaced)
    assert list(first.keys[0])[:1] != list(second.keys[0])[:1]
    # Its next blocks are computed with another adapter than its first ones
    assert not running.shared
    # The engine's own cache knows adapters by name: what it has may be of the old one.
    hit = with_lora(Request("c", list(range(16, 32)), 1), path, load_inplace=True)
    engine.ask(hit, 8)
    engine.begin(hit)
    assert engine.step(hit) == []


def test_a_request_whose_adapter_is_not_known_shares_nothing(engine: Engine) -> None:
    assert engine.run(with_lora(Request("a", list(range(8)), 1), Path("organisation/adapter"))) == []


# ---- workers ----


def layout_of(blocks: int = 16) -> KvLayout:
    return read_layout({"layer": torch.zeros(blocks, 2, 4, 1, 8)}, blocks)


def plan_of(spec: kvclient.ModelSpec, keys_of: kvclient.ModelSpec, tokens: list[int]) -> StepPlan:
    chain = kvclient.KeyChain(keys_of)
    root = chain.parent
    run = PublishRun(blocks=[1, 2], depth=0, keys=[chain.extend(tokens)], parents=[root])
    return StepPlan(publish=[run], model=spec.fingerprint().hex)


@pytest.fixture
def worker(kvmd: PrivateDaemon) -> Iterator[tuple[WorkerSide, kvclient.Client]]:
    client = kvclient.Client(kvmd.socket, name="worker")
    side = WorkerSide(ConnectorOptions(socket=kvmd.socket, host_cache_bytes=1 << 20))
    yield side, client
    side.close()
    client.close()


def test_a_worker_publishes_only_under_the_model_that_its_memory_is_registered_under(
    worker: tuple[WorkerSide, kvclient.Client],
) -> None:
    side, client = worker
    assert side.attach(client, OLD, kvclient.Shard(), layout_of(), "one")
    side.before_step(plan_of(NEW, NEW, list(range(8))))
    assert side.counters.totals().get("published_blocks", 0) == 0
    side.before_step(plan_of(OLD, OLD, list(range(8))))
    assert side.counters.totals()["published_blocks"] == 2
    assert side.attach(client, NEW, kvclient.Shard(), layout_of(), "two")
    assert len(client.find(keys(OLD, list(range(8))))) == 0  # went with the old weights
    side.before_step(plan_of(NEW, NEW, list(range(8))))
    assert side.counters.totals()["published_blocks"] == 4


def test_a_kvmd_that_hangs_when_the_engine_starts_is_waited_for_in_the_background(
    kvmd: PrivateDaemon, worker: tuple[WorkerSide, kvclient.Client]
) -> None:
    side, client = worker
    client.wait_connected(5.0)
    assert kvmd.pid is not None
    os.kill(kvmd.pid, signal.SIGSTOP)
    try:
        assert not side.attach(client, OLD, kvclient.Shard(), layout_of(), "one")
        side.before_step(plan_of(OLD, OLD, list(range(8))))  # the engine goes on meanwhile
        assert side.take_report() is None
    finally:
        os.kill(kvmd.pid, signal.SIGCONT)
    eventually(lambda: side.memory is not None, 6000)
    report = side.take_report()
    assert report is not None
    assert report.registered == {(0, 0, OLD.fingerprint().hex)}
    side.before_step(plan_of(OLD, OLD, list(range(8))))
    assert side.counters.totals()["published_blocks"] == 2


def test_a_final_error_is_not_tried_again(worker: tuple[WorkerSide, kvclient.Client]) -> None:
    side, client = worker
    with pytest.raises(InvalidArgumentError):
        side.attach(client, OLD, kvclient.Shard(), layout_of(), "n" * 200)
    assert side.memory is None


def test_what_comes_after_it_was_given_up_is_discarded() -> None:
    came, discarded, may_come = threading.Event(), threading.Event(), threading.Event()
    tries: list[int] = []

    def attempt() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise DeadlineExceededError("late")
        came.set()
        assert may_come.wait(30.0)
        return "memory"

    retried = Retried("a test", attempt, lambda _: discarded.set())
    assert came.wait(30.0)
    retried.cancel()
    may_come.set()
    assert discarded.wait(30.0)
    assert retried.result() is None


# ---- near misses ----


def test_a_model_that_differs_in_its_name_or_block_size_is_named_once(
    kvmd: PrivateDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    other_name, other_size = (kvclient.ModelSpec.from_canonical(OLD.canonical()) for _ in range(2))
    other_name.model_id = "/another/mount"
    other_size.block_tokens = 8
    with kvclient.Client(kvmd.socket, name="a") as client, kvclient.Client(kvmd.socket, name="b") as other:
        for spec in (other_name, other_size):
            other.declare_model(spec)
        log, model = NearMissLog(), client.declare_model(OLD)
        log.look(client, model)
        log._next = 0.0
        log.look(client, model)
    said = [record.getMessage() for record in caplog.records if record.name == "vllm.kvclient"]
    assert len(said) == 2
    assert any("model_id (here 'm', there '/another/mount')" in line for line in said)
    assert any("block_tokens (here '4', there '8')" in line for line in said)


# ---- the model runner ----


class Undecided:
    @property
    def use_v2_model_runner(self) -> bool:
        raise RuntimeError("no decision")


def test_the_v2_runner_is_known_by_the_configuration_else_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    assert uses_v2_runner(SimpleNamespace(use_v2_model_runner=True))
    assert not uses_v2_runner(SimpleNamespace(use_v2_model_runner=False))
    assert not uses_v2_runner(SimpleNamespace())
    assert uses_v2_runner(Undecided())
    for value, wanted in (("1", True), ("true", True), ("0", False), ("False", False), ("", False)):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        assert uses_v2_runner(SimpleNamespace()) == wanted, value
