"""Digests of weights by their content, and what is seen of changes to them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
import torch

from kvclient import weights
from kvclient.errors import UnsupportedError
from kvclient.weights import WeightsWatch, parameters_digest, tensors_of


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "wide": torch.randn(300, 70, generator=generator),
        "half": torch.randn(300, 70, generator=generator).bfloat16(),
        "other": torch.randn(300, 70, generator=generator),
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


def test_strides_order_and_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors()
    expected = parameters_digest(given)
    assert parameters_digest(reversed(list(given.items()))) == expected
    given["wide"] = given["wide"].t().contiguous().t()
    assert not given["wide"].is_contiguous()
    assert parameters_digest(given) == expected
    # Small pieces, some less than a row: every byte is in one of them.
    monkeypatch.setattr(weights, "_PIECE_BYTES", 128)
    cut = parameters_digest(given)
    assert cut == parameters_digest(tensors())
    for row, column in ((0, 0), (150, 35), (299, 69)):
        other = tensors()
        other["half"].view(torch.int16)[row, column] ^= 1 << 14
        assert parameters_digest(other) != cut


def test_what_can_not_be_read_is_refused_by_name() -> None:
    for unreadable in (torch.empty(3, device="meta"), torch.eye(3).to_sparse()):
        with pytest.raises(UnsupportedError, match=r"layer\.weight"):
            parameters_digest({"layer.weight": unreadable})


@pytest.mark.parametrize(
    "tensor", [torch.arange(13, dtype=torch.uint8), torch.randn(7, 3).bfloat16()[1:], torch.randn(64)]
)
def test_the_sums_that_a_gpu_computes_are_those_of_the_definition(tensor: torch.Tensor) -> None:
    raw = tensor.contiguous().view(torch.uint8).reshape(-1).numpy().tobytes()
    raw += b"\0" * (-len(raw) % 8)
    words = struct.unpack(f"<{len(raw) // 8}Q", raw)
    mask = (1 << 64) - 1
    expected = []
    for seed in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):
        total = 0
        for index, word in enumerate(words):
            z = (word + (index + 1) * seed) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            total = (total + (z ^ (z >> 31))) & mask
        expected.append(total)
    assert [each & mask for each in weights._mixed_sums(tensor).tolist()] == expected


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


def test_what_may_change_is_left_out() -> None:
    module = Module()
    watch = WeightsWatch(module, skip={"unsaved"})
    module.unsaved.zero_()
    assert not watch.changed()
