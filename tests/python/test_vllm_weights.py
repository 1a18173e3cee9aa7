"""What an engine's weights are, by their bytes in memory: kvclient.vllm.weights and EngineModel, without vLLM."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kvclient
from kvclient.errors import UnsupportedError
from kvclient.vllm.engine_model import EngineModel, executor_of
from kvclient.vllm.weights import Measured, digest_of, gathered, measure, tensors_of

SPEC = kvclient.ModelSpec(
    model_id="m",
    revision="r",
    weights_digest="config=1",
    kv_dtype="float32",
    layout="x",
    rope="theta=1",
    num_layers=1,
    num_kv_heads=1,
    head_size=8,
    block_tokens=4,
)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a": torch.randn(33, 7, generator=generator),
        "b": torch.randn(33, 7, generator=generator),
        "c": torch.randn(1_300_001, generator=generator),  # several pieces, the last one no whole word
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
    }


# ---- digests ----


def test_equal_weights_have_one_digest() -> None:
    assert digest_of(weights()) == digest_of(weights())
    assert digest_of(dict(reversed(list(weights().items())))) == digest_of(weights())


@pytest.mark.parametrize("name", ["a", "c", "half"])
def test_one_flipped_bit_anywhere_changes_the_digest(name: str) -> None:
    before = digest_of(weights())
    count = weights()[name].numel() * weights()[name].element_size()
    for position in {0, 1, 7, 8, count // 2, count - 1}:
        changed = weights()
        changed[name].view(torch.uint8).view(-1)[position] ^= 1 << (position % 8)
        assert digest_of(changed) != before, position


def test_swapped_and_renamed_tensors_change_the_digest() -> None:
    made = weights()
    before = digest_of(made)
    assert digest_of({**made, "a": made["b"], "b": made["a"]}) != before
    assert digest_of({("z" if name == "b" else name): each for name, each in made.items()}) != before
    assert digest_of({**made, "a": made["a"].view(7, 33)}) != before
    assert digest_of({**made, "half": made["half"].view(torch.float16)}) != before
    assert digest_of({**made, "d": torch.empty(0)}) != before
    rows = made["a"].clone()
    rows[[0, 1]] = rows[[1, 0]]
    assert digest_of({**made, "a": rows}) != before


def test_what_a_strided_tensor_does_not_hold_does_not_count() -> None:
    wide = torch.zeros(4, 10)
    wide[:, :3] = torch.arange(12.0).view(4, 3)
    before = digest_of({"a": wide[:, :3]})
    wide[:, 3:] = 9
    assert digest_of({"a": wide[:, :3]}) == before
    wide[3, 2] += 1
    assert digest_of({"a": wide[:, :3]}) != before


def test_a_transposed_tensor_is_another() -> None:
    square = torch.arange(16.0).view(4, 4)
    assert digest_of({"a": square}) != digest_of({"a": square.t()})
    assert digest_of({"a": square.t()}) == digest_of({"a": square.t()})


def test_a_tensor_without_memory_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no bytes to read"):
        digest_of({"a": torch.empty(3, device="meta")})
    with pytest.raises(UnsupportedError, match="no bytes to read"):
        digest_of({"a": torch.eye(3).to_sparse()})


def test_ranks_count_by_their_place() -> None:
    one, two = Measured(0, 0, "1" * 64), Measured(0, 1, "2" * 64)
    assert gathered([one, two]) == gathered([two, one])
    assert gathered([one, two]) != gathered([Measured(0, 0, "2" * 64), Measured(0, 1, "1" * 64)])
    assert gathered([one]) != gathered([one, Measured(1, 0, "1" * 64)])


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
    executor.hidden = (("layer.0", 8),)
    executor.collective_rpc("reload_weights")
    with pytest.raises(UnsupportedError, match="have been replaced"):
        model.settle()


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
