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


def test_a_file_that_is_replaced_under_the_same_size_and_times_is_read_again(tmp_path: Path) -> None:
    contents = Contents()
    path = write(tmp_path / "a.bin", b"1111")
    before = contents.digest(str(tmp_path), ["*.bin"])
    write(path, b"2222")
    assert contents.digest(str(tmp_path), ["*.bin"]) != before
    after = contents.digest(str(tmp_path), ["*.bin"])
    write(tmp_path / "b.tmp", b"3333").rename(path)
    assert contents.digest(str(tmp_path), ["*.bin"]) != after


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
