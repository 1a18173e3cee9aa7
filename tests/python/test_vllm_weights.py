"""What an engine's weights are, by their bytes in memory: kvclient.vllm.weights and EngineModel, without vLLM."""

from __future__ import annotations

import copy
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kvclient
from kvclient.errors import UnsupportedError
from kvclient.vllm.engine_model import EngineModel, executor_of
from kvclient.vllm.measuring import Measuring
from kvclient.vllm.weights import Measured, gathered, measure, tensors_of
from support.specs import small_spec

SPEC = small_spec(weights_digest="config=1", rope="theta=1")


def test_ranks_count_by_their_place() -> None:
    one, two = Measured(0, 0, "1" * 64), Measured(0, 1, "2" * 64)
    assert gathered([one, two]) == gathered([two, one])
    assert gathered([one, two]) != gathered([Measured(0, 0, "2" * 64), Measured(0, 1, "1" * 64)])
    assert gathered([one]) != gathered([one, Measured(1, 0, "1" * 64)])
    assert gathered([one, two]) != gathered([one, Measured(1, 0, "2" * 64)])


# ---- models ----


class Packed(torch.nn.Module):
    """A linear layer whose weight an engine has packed away, as vLLM's on a CPU."""

    def __init__(self, packed: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        self.apply_packed = lambda x: (packed, x)


class Small(torch.nn.Module):
    def __init__(self, packed: Any = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("angles", torch.arange(8.0), persistent=False)
        if packed is not None:
            self.packed = Packed(packed)


def worker_of(model: torch.nn.Module, **runner: Any) -> Any:
    return SimpleNamespace(model_runner=SimpleNamespace(get_model=lambda: model, **runner))


def digest(model: torch.nn.Module, **runner: Any) -> str:
    return measure(worker_of(model, **runner), 0, 0, {}).digest


def test_parameters_and_buffers_count_also_those_that_no_file_has() -> None:
    before = digest(Small())
    assert digest(Small()) == before
    changed = Small()
    changed.angles[3] = -1.0
    assert digest(changed) != before
    biased = Small()
    biased.linear.bias.data[0] += 1
    assert digest(biased) != before


def test_a_draft_models_weights_count() -> None:
    one, other = Small(), Small()
    other.linear.weight.data += 1
    plain = digest(Small())
    drafts = [digest(Small(), drafter=SimpleNamespace(model=model)) for model in (one, other)]
    assert len({plain, *drafts}) == 3
    assert digest(Small(), speculator=SimpleNamespace(model=one)) not in (plain, *drafts)


def test_tensors_that_a_module_keeps_in_a_function_count() -> None:
    assert tensors_of(Small(torch.ones(4)))[1] == ()
    assert digest(Small(torch.ones(4))) != digest(Small(torch.zeros(4)))


def test_weights_that_nobody_can_read_are_named() -> None:
    model = Small(object())
    [(name, what)] = tensors_of(model)[1]
    assert name == "packed"
    assert tensors_of(model)[1] == ((name, what),)
    model.packed.apply_packed = Packed(object()).apply_packed
    assert tensors_of(model)[1] != ((name, what),)


def test_weights_that_are_gone_without_a_trace_are_named() -> None:
    model = Small(object())
    del model.packed.apply_packed
    assert tensors_of(model)[1] == (("packed", 0),)


def test_neither_modules_nor_unset_variables_in_a_function_are_packed_weights() -> None:
    model = Small(object())

    def holding(layer: torch.nn.Module) -> Callable[[Any], Any]:
        return lambda x: layer(x)

    def with_unset() -> Callable[[], Any]:
        unset = 1
        function = lambda: unset  # noqa: E731, F821 - unset on purpose
        del unset
        return function

    model.packed.apply_packed = holding(model.linear)
    model.packed.later = with_unset()
    assert tensors_of(model)[1] == (("packed", 0),)


def test_the_id_of_packed_weights_is_never_given_to_others() -> None:
    class Handle:
        pass

    model = Small(Handle())
    held = weakref.ref(model.packed.apply_packed.__closure__[0].cell_contents)
    tensors_of(model)
    model.packed.apply_packed = Packed(Handle()).apply_packed
    assert held() is not None


def test_a_module_in_two_places_counts_as_two_equal_ones() -> None:
    shared, copied = Small(), Small()
    shared.again = shared.linear
    copied.again = copy.deepcopy(copied.linear)
    assert digest(shared) == digest(copied)


def test_a_draft_counts_once_and_through_its_wrapper() -> None:
    served, draft = Small(), Small()
    draft.linear.weight.data += 1
    plain = digest(served)
    assert digest(served, drafter=SimpleNamespace(target=served)) == plain
    wrapped = SimpleNamespace(unwrap=lambda: draft)
    assert digest(served, drafter=SimpleNamespace(model=wrapped)) == digest(
        served, drafter=SimpleNamespace(model=draft)
    )


def test_layers_that_move_while_the_engine_runs_are_refused() -> None:
    worker = worker_of(Small())
    prefetch = SimpleNamespace(offload_group_size=4)
    worker.vllm_config = SimpleNamespace(offload_config=SimpleNamespace(prefetch=prefetch))
    with pytest.raises(UnsupportedError, match="offloaded"):
        measure(worker, 0, 0, {})
    prefetch.offload_group_size = 0
    measure(worker, 0, 0, {})


def module_of(name: str, path: Path | None, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A model of a class that the module ``name`` defines, whose source is at ``path``."""
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(__file__=path and str(path)))
    return type("Model", (Small,), {"__module__": name})()


def test_code_that_comes_with_a_model_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "modeling.py"
    source.write_text("scale = 1")
    before = digest(module_of("of_a_folder.modeling", source, monkeypatch))
    assert digest(module_of("of_a_folder.modeling", source, monkeypatch)) == before
    source.write_text("scale = 2")
    assert digest(module_of("of_a_folder.modeling", source, monkeypatch)) != before
    assert digest(module_of("vllm.model_executor.models.x", source, monkeypatch)) == digest(
        module_of("transformers.models.x", source, monkeypatch)
    )


@pytest.mark.parametrize(
    "name", ["vllm.model_executor.models.x", "vllm.model_executor.layers.rotary_embedding.x", "of_a_folder.modeling"]
)
def test_a_model_whose_source_mentions_the_longest_prompt_reads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "modeling.py"
    source.write_text("config.max_model_len")
    assert measure(worker_of(module_of(name, source, monkeypatch)), 0, 0, {}).reads_length == (name,)
    source.write_text("config.hidden_size")
    assert name not in measure(worker_of(module_of(name, source, monkeypatch)), 0, 0, {}).reads_length
    for unknown in (None, tmp_path / "none.py"):
        assert name in measure(worker_of(module_of(name, unknown, monkeypatch)), 0, 0, {}).reads_length


def test_the_engines_own_layers_may_mention_the_longest_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "attention.py"
    source.write_text("config.max_model_len")
    model = module_of("vllm.model_executor.layers.attention", source, monkeypatch)
    assert measure(worker_of(model), 0, 0, {}).reads_length == ()


def test_kv_blocks_are_no_weights() -> None:
    model = Small()
    cache = torch.zeros(10)
    model.register_buffer("kv", cache)
    before = measure(worker_of(model), 0, 0, {"layer": cache}).digest
    cache += 1
    assert measure(worker_of(model), 0, 0, {"layer": cache}).digest == before


def test_a_worker_that_shows_no_model_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="does not show its model"):
        measure(SimpleNamespace(), 0, 0, {})


# ---- what changes them ----


class Executor:
    """As vLLM's: steps and calls of users go through ``collective_rpc``."""

    def __init__(self) -> None:
        self.weights = "a"
        self.hidden: tuple[tuple[str, int], ...] = ()
        self.reads_length: tuple[str, ...] = ()
        self.is_sleeping = False
        self.measured = 0

    def collective_rpc(self, method: Any, *arguments: Any, **keywords: Any) -> list[Any]:
        return [None]

    def measure(self, call: Callable[..., Any]) -> list[Measured]:
        assert call(lambda worker: None) == [None]
        self.measured += 1
        return [Measured(0, 0, self.weights * 64, self.hidden, self.reads_length)]


def engine(executor: Executor, **arguments: Any) -> EngineModel:
    arguments = {"source": lambda: "files:1", "lengths": "512", **arguments}
    return EngineModel(executor, executor.measure, SPEC, **arguments)


def settled(model: EngineModel) -> kvclient.ModelSpec:
    """Once the workers have reported."""
    spec = model.settle()
    if spec is None:
        number = model.measuring
        for rank in model._measure(model.call):
            model.measured(number, rank)
        spec = model.settle()
    assert spec is not None
    return spec


def test_weights_are_measured_at_the_start_and_after_every_call_that_may_change_them() -> None:
    executor = Executor()
    model = engine(executor)
    first = settled(model)
    for harmless in ("execute_model", "sample_tokens", "list_loras"):
        executor.collective_rpc(harmless)
    assert settled(model) is first
    assert executor.measured == 1
    for call in ("update_weights", "reload_weights", "wake_up", "apply_model", lambda worker: None):
        executor.collective_rpc(call)
        assert settled(model) == first
    assert executor.measured == 6
    executor.weights = "b"
    executor.collective_rpc("update_weights")
    executor.collective_rpc("update_weights")
    assert settled(model) != first
    assert executor.measured == 7
    executor.weights = "a"
    executor.collective_rpc("update_weights")
    assert settled(model) == first


def test_the_connector_is_told_of_adapters_before_and_after_the_workers_load_them() -> None:
    executor = Executor()
    said: list[str] = []
    call = executor.collective_rpc
    executor.collective_rpc = lambda *a, **k: said.append("load") or call(*a, **k)  # type: ignore[method-assign,func-returns-value]
    model = engine(executor)
    executor.collective_rpc("add_lora", args=("early",))
    model.adapter_loading = lambda lora: said.append(f"before {lora}") or (lambda: said.append("after"))  # type: ignore[func-returns-value]
    executor.collective_rpc("add_lora", args=("x",))
    executor.collective_rpc("add_lora", None, ("y",))
    assert said == ["load", "before x", "load", "after", "before y", "load", "after"]


def test_the_connector_is_told_of_an_adapter_that_the_workers_could_not_load() -> None:
    executor = Executor()

    def fail(*_: Any, **__: Any) -> list[Any]:
        raise RuntimeError("no such adapter")

    executor.collective_rpc = fail  # type: ignore[method-assign]
    model = engine(executor)
    said: list[str] = []
    model.adapter_loading = lambda lora: lambda: said.append("after")
    with pytest.raises(RuntimeError, match="no such adapter"):
        executor.collective_rpc("add_lora", args=("x",))
    assert said == ["after"]


def test_weights_that_change_while_they_are_measured_are_measured_again() -> None:
    executor = Executor()
    measure = executor.measure

    def measure_slowly(call: Callable[..., Any]) -> list[Measured]:
        ranks = measure(call)
        if executor.measured == 1:
            executor.weights = "b"
            executor.collective_rpc("update_weights")
        return ranks

    executor.measure = measure_slowly  # type: ignore[method-assign]
    model = engine(executor)
    first = settled(model)
    assert settled(model) != first
    assert executor.measured == 2


def test_weights_are_not_known_until_all_workers_have_reported_those_of_the_last_call() -> None:
    executor = Executor()
    executor.measure = lambda call: [Measured(0, rank, "a" * 64) for rank in range(2)]  # type: ignore[method-assign]
    model = engine(executor)
    first = settled(model)
    executor.collective_rpc("update_weights")
    assert model.settle() is None
    early = model.measuring
    model.measured(early, Measured(0, 0, "b" * 64))
    executor.collective_rpc("update_weights")
    assert model.measuring == 0  # the weights are measured only after the call
    assert model.settle() is None
    for rank in range(2):
        model.measured(early, Measured(0, rank, "b" * 64))
    assert model.settle() is None
    now = model.measuring
    assert now != early
    model.measured(now, Measured(0, 1, "a" * 64))
    assert model.settle() is None
    model.measured(now, Measured(0, 0, "a" * 64))
    assert model.settle() == first
    assert model.measuring == 0


def test_measurements_end_before_a_call_that_may_unmap_the_weights() -> None:
    executor = Executor()
    order: list[Any] = []
    executor.collective_rpc = lambda method, *_, **__: order.append(method) or [None]  # type: ignore[method-assign,func-returns-value]
    model = engine(executor)
    settled(model)
    model.finish_measuring = lambda: order.append("finish")
    order.clear()
    executor.collective_rpc("update_weights")
    assert model.settle() is None
    executor.collective_rpc("execute_model")
    executor.collective_rpc("sleep")
    assert order == ["update_weights", "execute_model", "finish", "sleep"]


def test_workers_that_report_nothing_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor()
    model = engine(executor)
    first = settled(model)
    executor.collective_rpc("update_weights")
    assert model.settle() is None
    monkeypatch.setattr("kvclient.vllm.engine_model._LATE_S", 0.0)
    assert model.settle() == first
    assert executor.measured == 2


def test_a_worker_that_can_not_measure_says_why() -> None:
    executor = Executor()
    model = engine(executor)
    settled(model)
    executor.collective_rpc("update_weights")
    assert model.settle() is None
    with pytest.raises(UnsupportedError, match="a worker's weights: gone"):
        model.measured(model.measuring, "gone")


# ---- beside the steps ----


def test_a_worker_measures_on_another_thread_and_each_number_once() -> None:
    measuring, may_end, threads = Measuring(), threading.Event(), []

    def measure() -> Measured:
        threads.append(threading.current_thread())
        assert may_end.wait(30.0)
        return Measured(0, 0, "a" * 64)

    measuring.begin(1, measure)
    measuring.begin(1, measure)
    assert measuring.take() == []
    may_end.set()
    measuring.finish()
    assert measuring.take() == [(1, Measured(0, 0, "a" * 64))]
    measuring.begin(1, measure)
    measuring.finish()
    assert measuring.take() == []
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


def test_a_measurement_that_fails_ends() -> None:
    def fail() -> Measured:
        raise RuntimeError("no memory")

    measuring = Measuring()
    measuring.begin(1, fail)
    measuring.finish()
    assert measuring.take() == [(1, "RuntimeError: no memory")]


def test_ranks_may_answer_in_any_order() -> None:
    executor = Executor()
    ranks = [Measured(0, rank, str(rank) * 64, (("layer", rank),), runner=f"runner{rank}") for rank in range(2)]
    answers = [ranks, ranks[::-1]]
    executor.measure = lambda call: answers.pop(0)  # type: ignore[method-assign]
    model = engine(executor)
    first = settled(model)
    executor.collective_rpc("update_weights")
    assert settled(model) == first
    assert model.runner == "runner0+runner1"


def test_where_engines_hold_parts_of_a_model_its_source_counts() -> None:
    executor, other = Executor(), Executor()
    other.weights = "b"
    one, two = engine(executor, spread=True), engine(other, spread=True)
    assert settled(one) == settled(two)
    assert settled(one) != settled(engine(executor, spread=True, source=lambda: "files:2"))


def test_a_sleeping_engine_is_not_measured() -> None:
    executor = Executor()
    model = engine(executor)
    first = settled(model)
    executor.collective_rpc("sleep")
    executor.is_sleeping = True
    assert model.settle() is None
    executor.is_sleeping = False
    assert settled(model) == first


def test_what_the_user_says_counts_until_the_weights_change() -> None:
    executor, other = Executor(), Executor()
    other.weights = "packed otherwise"
    said, same = engine(executor, given="w1"), engine(other, given="w1")
    assert settled(said) == settled(same)
    assert settled(said) != settled(engine(Executor(), given="w2"))
    before = settled(said)
    executor.weights = "b"
    executor.collective_rpc("update_weights")
    assert settled(said) != before
    assert settled(said) != settled(engine(executor))


def test_where_weights_cannot_be_read_their_source_counts_until_they_are_replaced() -> None:
    executor = Executor()
    executor.hidden = (("layer.0", 7),)
    model = engine(executor)
    assert settled(model) != settled(engine(Executor()))
    assert settled(model) == settled(engine(executor))
    assert settled(model) != settled(engine(executor, source=lambda: "files:2"))
    other = Executor()
    other.hidden, other.weights = (("layer.0", 7),), "b"  # those that can be read
    assert settled(model) != settled(engine(other))
    executor.hidden = (("layer.0", 8),)
    executor.collective_rpc("reload_weights")
    with pytest.raises(UnsupportedError, match="have been replaced"):
        settled(model)


def test_the_longest_prompt_counts_where_the_model_reads_it() -> None:
    executor = Executor()
    assert settled(engine(executor, lengths="512")) == settled(engine(executor, lengths="8192"))
    executor.reads_length = ("vllm.model_executor.layers.rotary_embedding.phi3_long_rope_scaled_rope",)
    short, long = settled(engine(executor, lengths="512")), settled(engine(executor, lengths="8192"))
    assert (short.rope, long.rope) == ("theta=1;max_model_len=512", "theta=1;max_model_len=8192")


def test_the_executor_is_the_one_of_the_engine_that_is_being_built() -> None:
    class Engine:
        def __init__(self) -> None:
            self.model_executor = Executor()
            self.found = self.build()

        def build(self) -> Any:
            return executor_of(None)

    made = Engine()
    assert made.found is made.model_executor
    with pytest.raises(UnsupportedError, match="does not show the connector its workers"):
        executor_of(None)


def test_an_object_that_can_not_call_workers_is_no_executor() -> None:
    class Half:
        def __init__(self) -> None:
            self.model_executor = object()
            executor_of(None)

    with pytest.raises(UnsupportedError, match="does not show the connector its workers"):
        Half()
