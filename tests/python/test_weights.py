"""Digests of weights by their content, and what is seen of changes to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kvclient import weights
from kvclient.errors import UnsupportedError
from kvclient.weights import WeightsWatch, parameters_digest, tensors_of


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "wide": torch.randn(300, 70, generator=generator),
        "half": torch.randn(300, 70, generator=generator).bfloat16(),
        "other": torch.randn(300, 70, generator=generator),
        # Several sums, the last one of no whole word
        "long": torch.randn(1_300_001, generator=generator),
        "scalar": torch.tensor(3),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0),
    }


def swap(given: dict[str, torch.Tensor]) -> None:
    given["wide"], given["other"] = given["other"], given["wide"]


def rename(given: dict[str, torch.Tensor]) -> None:
    given["renamed"] = given.pop("other")


def flip_a_bit(given: dict[str, torch.Tensor]) -> None:
    given["half"].view(torch.int16)[299, 69] ^= 1


def flip_two_signs(given: dict[str, torch.Tensor]) -> None:
    given["wide"][7, 1] *= -1
    given["wide"][9, 3] *= -1


def reshape(given: dict[str, torch.Tensor]) -> None:
    given["wide"] = given["wide"].reshape(70, 300)


def retype(given: dict[str, torch.Tensor]) -> None:
    given["half"] = given["half"].view(torch.float16)


def swap_rows(given: dict[str, torch.Tensor]) -> None:
    given["wide"] = given["wide"].flip(0)


def drop(given: dict[str, torch.Tensor]) -> None:
    del given["empty"]


@pytest.mark.parametrize("change", [swap, rename, flip_a_bit, flip_two_signs, reshape, retype, swap_rows, drop])
def test_each_difference_gives_another_digest(change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    given = tensors()
    change(given)
    assert parameters_digest(given) != parameters_digest(tensors())


@pytest.mark.parametrize("name", ["wide", "half", "long", "flags"])
def test_one_flipped_bit_anywhere_changes_the_digest(name: str) -> None:
    before = parameters_digest(tensors())
    count = tensors()[name].nbytes
    for position in {0, 1, 7 % count, count // 2, count - 1}:
        changed = tensors()
        changed[name].view(torch.uint8).view(-1)[position] ^= 1 << (position % 8)
        assert parameters_digest(changed) != before, position


def test_neither_the_order_of_tensors_nor_how_the_work_is_cut_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = parameters_digest(tensors())
    assert parameters_digest(reversed(list(tensors().items()))) == expected
    monkeypatch.setattr(weights, "_CPU_SHARE_BYTES", weights._SUM_BYTES)
    assert parameters_digest(tensors()) == expected


def test_what_a_strided_tensor_does_not_hold_does_not_count() -> None:
    wide = torch.zeros(4, 10)
    wide[:, :3] = torch.arange(12.0).view(4, 3)
    before = parameters_digest({"a": wide[:, :3]})
    wide[:, 3:] = 9
    assert parameters_digest({"a": wide[:, :3]}) == before
    wide[3, 2] += 1
    assert parameters_digest({"a": wide[:, :3]}) != before


def test_a_transposed_tensor_is_another_and_the_same_each_time() -> None:
    square = torch.arange(16.0).view(4, 4)
    assert parameters_digest({"a": square}) != parameters_digest({"a": square.t()})
    assert parameters_digest({"a": square.t()}) == parameters_digest({"a": square.clone().t()})
    # The same values at the same indices in another order of memory: kernels may add in another
    # order.
    assert parameters_digest({"a": square}) != parameters_digest({"a": square.t().contiguous().t()})


def test_tied_weights_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    sums = weights._sums
    monkeypatch.setattr(weights, "_sums", lambda row: reads.append(row.numel()) or sums(row))
    tensor = torch.ones(16)
    tied = parameters_digest({"a": tensor, "b": tensor})
    assert reads == [64]
    assert tied == parameters_digest({"a": tensor, "b": tensor.clone()})


@pytest.mark.parametrize(
    "views",
    [
        lambda row: (row[:4], row[:8]),
        lambda row: (row[:4], row[:8:2]),
        lambda row: (row.view(torch.uint8)[:7], row[:7]),
    ],
)
def test_views_at_one_address_are_each_read(views: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> None:
    def digest(changed: int) -> str:
        row = torch.arange(16.0)
        row[changed] = 99
        one, other = views(row)
        return parameters_digest({"a": one, "b": other})

    assert digest(6) != digest(15)  # which the second one alone sees
    assert digest(14) != digest(6)
    assert digest(14) == digest(15)


def test_a_conjugate_counts_by_its_values() -> None:
    values = torch.tensor([1 + 2j, 3 - 4j])
    assert parameters_digest({"a": values.conj()}) != parameters_digest({"a": values})
    assert parameters_digest({"a": values.conj()}) == parameters_digest({"a": values.conj().resolve_conj()})


class Halves(torch.Tensor):
    """A tensor subclass that holds its bytes in two others, as quantized weights do."""

    @staticmethod
    def of(one: torch.Tensor, other: torch.Tensor) -> Halves:
        made = torch.zeros(2, *one.shape).as_subclass(Halves)
        made.one, made.other = one, other  # type: ignore[attr-defined]
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["one", "other"], None


def test_a_tensor_that_is_made_of_others_counts_by_their_bytes() -> None:
    zeros, ones = torch.zeros(8), torch.ones(8)
    before = parameters_digest({"a": Halves.of(zeros, ones)})
    assert parameters_digest({"a": Halves.of(zeros.clone(), ones.clone())}) == before
    assert parameters_digest({"a": Halves.of(ones, zeros)}) != before
    assert parameters_digest({"a": Halves.of(zeros, zeros)}) != before
    assert parameters_digest({"a": torch.stack([zeros, ones])}) != before


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_what_can_not_be_read_is_refused_by_name() -> None:
    spread = torch.ones(3)
    spread.placements = ()  # as DTensor's
    zero3 = torch.empty(0)
    zero3.ds_id = 3  # as DeepSpeed's ZeRO 3, which leaves the tensor empty
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with FakeTensorMode():
        fake = torch.ones(3)
    for unreadable in (torch.empty(3, device="meta"), torch.eye(3).to_sparse(), spread, zero3, quantized, fake):
        with pytest.raises(UnsupportedError, match=r"layer\.weight"):
            parameters_digest({"layer.weight": unreadable})


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(32, 16)
        self.tied = torch.nn.Linear(32, 16)
        self.tied.weight = self.linear.weight
        self.norm = torch.nn.BatchNorm1d(16)
        self.register_buffer("unsaved", torch.ones(4), persistent=False)


def test_all_tensors_of_a_module_are_its_weights() -> None:
    names = set(tensors_of(Module()))
    assert {"linear.weight", "tied.weight", "linear.bias", "norm.running_mean", "unsaved"} <= names


def optimize(module: Module) -> None:
    module.linear(torch.ones(2, 32)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()


def assign(module: Module) -> None:
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)


def write_one(module: Module) -> None:
    with torch.no_grad():
        module.linear.weight[3, 5] += 1


def merge(module: Module) -> None:
    module.linear.weight.data += 0.01  # as adapters are merged: autograd's counter does not see it


def buffer(module: Module) -> None:
    module.unsaved.zero_()


def add(module: Module) -> None:
    module.linear.register_parameter("lora_A", torch.nn.Parameter(torch.zeros(2, 2)))


@pytest.mark.parametrize("change", [optimize, assign, write_one, merge, buffer, add])
def test_changes_are_seen_until_they_are_accepted(change: Callable[[Module], None]) -> None:
    module = Module()
    watch = WeightsWatch(module)
    module.linear(torch.ones(2, 32))
    assert not watch.changed()
    change(module)
    assert watch.changed()
    assert watch.changed()
    watch.refresh()
    assert not watch.changed()


def test_a_module_that_was_made_for_inference_can_be_watched() -> None:
    with torch.inference_mode():
        module = Module()
        watch = WeightsWatch(module)
        assert not watch.changed()
        module.linear.weight.fill_(2)
        assert watch.changed()


def test_what_may_change_is_left_out() -> None:
    module = Module()
    watch = WeightsWatch(module, skip={"unsaved"})
    module.unsaved.zero_()
    assert not watch.changed()


def test_how_tensors_are_spread_over_threads_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small ones, one of several shares, tied and strided ones, and one that has to be copied."""
    generator = torch.Generator().manual_seed(3)
    large = torch.randn(5 << 20, generator=generator)
    tensors = {f"small.{index}": torch.randn(index, 3, generator=generator) for index in range(150)}
    tensors |= {
        "large": large,
        "tied": large,
        "rows": large.view(1 << 10, -1).t(),
        "part": large[: 1 << 20].view(-1, 64)[:, :7],
    }
    expected = parameters_digest(tensors)
    for name, value in (("_MOST_IN_A_BATCH", 1), ("_MOST_IN_A_BATCH", 10_000), ("_CPU_SHARE_BYTES", 1 << 20)):
        with monkeypatch.context() as patch:
            patch.setattr(f"kvclient.weights.{name}", value)
            assert parameters_digest(tensors) == expected
    tensors["small.149"][148, 2] += 1
    assert parameters_digest(tensors) != expected
