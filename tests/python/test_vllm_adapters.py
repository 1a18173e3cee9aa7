"""LoRA adapters by the content of their files: kvclient.vllm.contents and .adapters."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvclient.vllm.adapters import Adapters
from kvclient.vllm.contents import Contents
from support.waiting import eventually

LONG_AGO = (1_000_000_000, 1_000_000_000)


def write(path: Path, content: bytes, times: tuple[int, int] | None = LONG_AGO) -> Path:
    path.write_bytes(content)
    if times is not None:
        os.utime(path, times)
    return path


def lora(name: str, path: Path | str, number: int = 1, *, load_inplace: bool = False) -> Any:
    return SimpleNamespace(lora_name=name, lora_path=str(path), lora_int_id=number, load_inplace=load_inplace)


def folder(root: Path, name: str, content: bytes) -> Path:
    made = root / name
    made.mkdir(exist_ok=True)
    write(made / "adapter_model.safetensors", content)
    write(made / "adapter_config.json", b"{}")
    return made


def identity(adapters: Adapters, request: Any) -> str:
    found = adapters.of(request)
    assert found is not None
    return found.identity


# ---- contents ----


def test_files_of_one_name_size_and_time_are_told_apart(tmp_path: Path) -> None:
    one, other = folder(tmp_path, "one", b"1111"), folder(tmp_path, "other", b"2222")
    assert Contents().digest(str(one), ["*.safetensors"]) != Contents().digest(str(other), ["*.safetensors"])
    write(other / "adapter_model.safetensors", b"1111", None)
    assert Contents().digest(str(one), ["*.safetensors"]) == Contents().digest(str(other), ["*.safetensors"])
    assert Contents().digest(str(one), ["*.bin"]) == ""


def rewrite(path: Path, content: bytes) -> None:
    """Other bytes of the same size and time of writing; only the time of the change differs."""
    before = path.stat().st_ctime_ns
    eventually(lambda: write(path, content).stat().st_ctime_ns != before)


@pytest.mark.parametrize("known_after_s", [0, 3])
def test_a_file_that_is_replaced_under_the_same_size_and_times_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_after_s: int
) -> None:
    contents = Contents()
    path = write(tmp_path / "a.bin", b"1111")
    clock = time.time_ns
    monkeypatch.setattr("kvclient.vllm.contents.time.time_ns", lambda: clock() + known_after_s * 1_000_000_000)
    before = contents.digest(str(tmp_path), ["*.bin"])
    rewrite(path, b"2222")
    assert contents.digest(str(tmp_path), ["*.bin"]) != before
    after = contents.digest(str(tmp_path), ["*.bin"])
    write(tmp_path / "b.tmp", b"3333").rename(path)
    assert contents.digest(str(tmp_path), ["*.bin"]) != after


def test_names_count_and_the_order_of_a_folder_does_not(tmp_path: Path) -> None:
    patterns = ["*.bin", "*.json"]
    numbers = range(8)
    one, other = tmp_path / "one", tmp_path / "other"
    for made, order in ((one, numbers), (other, reversed(numbers))):
        made.mkdir()
        for number in order:
            write(made / f"{number}.bin", bytes([number]))
    before = Contents().digest(str(one), patterns)
    assert Contents().digest(str(other), patterns) == before
    (other / "7.bin").rename(other / "8.bin")
    assert Contents().digest(str(other), patterns) != before


def test_a_file_that_changes_while_it_is_read_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.bin", b"1111")
    monkeypatch.setattr("kvclient.vllm.contents._read", lambda _: rewrite(path, b"2222") or b"x")
    with pytest.raises(OSError, match="changes while it is read"):
        Contents().digest(str(tmp_path), ["*.bin"])
    assert Adapters().of(lora("x", tmp_path)) is None


def test_a_file_that_nothing_has_changed_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr("kvclient.vllm.contents._read", lambda path: read.append(path) or b"x")
    write(tmp_path / "a.bin", b"1111")
    fresh = Contents()
    fresh.digest(str(tmp_path), ["*.bin"])
    fresh.digest(str(tmp_path), ["*.bin"])
    assert len(read) == 2  # it changed just now, so it may again, unseen
    later = time.time_ns() + 3_000_000_000
    monkeypatch.setattr("kvclient.vllm.contents.time.time_ns", lambda: later)
    for _ in range(3):
        fresh.digest(str(tmp_path), ["*.bin"])
    assert len(read) == 3


# ---- adapters ----


def test_adapters_are_the_same_by_content_and_name(tmp_path: Path) -> None:
    one, copy, other = (folder(tmp_path, name, data) for name, data in (("1", b"a"), ("2", b"a"), ("3", b"b")))
    assert identity(Adapters(), lora("x", one)) == identity(Adapters(), lora("x", copy, 9))
    assert identity(Adapters(), lora("x", one)) != identity(Adapters(), lora("x", other))
    assert identity(Adapters(), lora("x", one)) != identity(Adapters(), lora("y", one))
    stacked = lora("x", one)
    stacked.is_3d_lora_weight = True
    assert identity(Adapters(), lora("x", one)) != identity(Adapters(), stacked)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pt", "adapter_config.json"])
def test_each_file_that_vllm_reads_counts(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path, "a", b"1")
    write(path / name, b"1")
    before = identity(Adapters(), lora("x", path))
    write(path / name, b"2")
    assert identity(Adapters(), lora("x", path)) != before


def test_a_path_may_start_at_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path, "a", b"1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert identity(Adapters(), lora("x", "~/a")) == identity(Adapters(), lora("x", path))


def test_an_adapter_whose_files_change_after_it_was_loaded_is_not_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapters = Adapters()
    path = folder(tmp_path, "a", b"1")
    identity(adapters, lora("x", path))
    folder(tmp_path, "a", b"2")
    assert adapters.of(lora("x", path)) is None
    assert adapters.of(lora("x", path)) is None
    assert caplog.text.count("have changed since the engine loaded it") == 1


def test_an_adapter_that_is_loaded_in_place_or_under_another_number_is_another(tmp_path: Path) -> None:
    adapters = Adapters()
    path = folder(tmp_path, "a", b"1")
    before = identity(adapters, lora("x", path))
    folder(tmp_path, "a", b"2")
    replaced = adapters.of(lora("x", path, load_inplace=True))
    assert replaced is not None
    assert replaced.identity != before
    assert replaced.replaced  # the engine's own cache may hold blocks of the old one
    adapters.forget_cached()
    found = adapters.of(lora("x", path, load_inplace=True))
    assert found is not None
    assert not found.replaced
    folder(tmp_path, "a", b"3")
    again = adapters.of(lora("x", path, 2))
    assert again is not None
    assert again.replaced
    assert again.identity not in (before, replaced.identity)


def test_an_adapter_that_was_unknown_is_known_once_it_is_loaded_in_place(tmp_path: Path) -> None:
    adapters = Adapters()
    path = folder(tmp_path, "a", b"1")
    before = identity(adapters, lora("x", path))
    folder(tmp_path, "a", b"2")
    assert adapters.of(lora("x", path)) is None
    folder(tmp_path, "a", b"1")
    found = adapters.of(lora("x", path, load_inplace=True))
    assert found is not None
    assert found.identity == before
    assert found.replaced  # the engine may have loaded the other content in between


def test_the_same_adapter_under_another_number_replaces_none(tmp_path: Path) -> None:
    adapters = Adapters()
    path = folder(tmp_path, "a", b"1")
    identity(adapters, lora("x", path))
    again = adapters.of(lora("x", path, 2))
    assert again is not None
    assert not again.replaced


def test_an_adapter_is_what_it_was_when_the_engine_loaded_it_not_when_it_is_first_used(tmp_path: Path) -> None:
    adapters = Adapters()
    path = folder(tmp_path, "a", b"1")
    adapters.loading(lora("x", path))()
    assert adapters.of(lora("x", path)) is not None
    folder(tmp_path, "a", b"2")
    assert adapters.of(lora("x", path)) is None


def test_an_adapter_whose_files_change_while_the_engine_loads_it_is_not_shared(tmp_path: Path) -> None:
    for load_inplace in (False, True):
        adapters = Adapters()
        path = folder(tmp_path, "a", b"1")
        done = adapters.loading(lora("x", path, load_inplace=load_inplace))
        folder(tmp_path, "a", b"2")
        done()
        folder(tmp_path, "a", b"1")
        assert adapters.of(lora("x", path)) is None


def test_an_adapter_without_readable_files_is_not_shared(tmp_path: Path) -> None:
    assert Adapters().of(lora("x", "organisation/adapter")) is None
    assert Adapters().of(lora("x", tmp_path)) is None
