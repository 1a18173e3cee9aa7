"""Types, errors and keys of the package, without a worker."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import kvclient
from kvclient import BlockKey, BlockKeys, BlockWrite, ExtraKey, Geometry, KeyChain, ModelSpec, Shard, ShardKeys, errors
from kvclient.daemon import PrivateDaemon
from support.block_worker import spec

ROOT = Path(__file__).resolve().parents[2]


def test_every_error_code_has_a_class_of_its_own() -> None:
    header = (ROOT / "proto" / "include" / "kvm" / "error.h").read_text()
    codes = [line.split("=")[0].strip() for line in header.splitlines() if line.strip().startswith("k") and "=" in line]
    assert len(codes) >= 15
    classes = {cls.code: cls for cls in errors.KvError.__subclasses__()}
    assert len(classes) == len(codes)
    assert isinstance(errors.from_code("stale", "m", 2), errors.StaleError)
    assert str(errors.from_code("system", "open x", 2)) == "open x (No such file or directory)"
    assert type(errors.from_code("from the future", "m")) is errors.KvError


def test_errors_carry_code_message_and_survive_pickling() -> None:
    with pytest.raises(errors.InvalidArgumentError, match="kv_dtype is required") as caught:
        ModelSpec(model_id="m").validate()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.code, again.message) == (type(caught.value), "invalid_argument", caught.value.message)
    with pytest.raises(errors.UnavailableError) as caught:
        kvclient.Client("/nonexistent/kvmd.sock", timeout_s=0.05)
    assert caught.value.sys_errno == 2


def test_a_spec_has_all_fields_and_survives_pickling() -> None:
    one = spec(sliding_window=7, tp_size=2)
    assert pickle.loads(pickle.dumps(one)) == one
    assert ModelSpec.from_canonical(one.canonical()) == one
    assert set(one.fields()) == {
        name for name in dir(one) if not name.startswith("_") and not callable(getattr(one, name))
    }
    other = spec(revision="r2", block_tokens=8)
    assert [(each.field, each.theirs) for each in one.difference(other)] == [
        ("revision", "r2"),
        ("block_tokens", "8"),
        ("sliding_window", "0"),
        ("tp_size", "1"),
    ]
    with pytest.raises(errors.InvalidArgumentError, match="no_such_field"):
        ModelSpec(no_such_field=1)


def independent() -> ModuleType:
    """scripts/make_key_vectors.py, which shares no code with libkvclient."""
    module_spec = importlib.util.spec_from_file_location("independent", ROOT / "scripts" / "make_key_vectors.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def test_specs_and_keys_are_those_of_the_independent_implementation() -> None:
    theirs = independent()
    kinds = list(ExtraKey.Kind)
    compared = 0
    for name, shard, extras, blocks in theirs.CHAINS:
        fields = {"llama": theirs.LLAMA, "mla": theirs.MLA, "awkward": theirs.AWKWARD}[name]
        ours = ModelSpec(**fields)
        assert ours.canonical().encode() == theirs.canonical(fields)
        if any(len(tokens) != ours.block_tokens for tokens, _ in blocks):
            continue  # the Python chain takes whole blocks only
        names = ("tp_rank", "tp_size", "pp_rank", "pp_size", "kv_group")
        chain = KeyChain(
            ours,
            Shard(**dict(zip(names, shard, strict=True))),
            [ExtraKey(kinds[kind - 1], value) for kind, value in extras],
        )
        key = theirs.root_key(hashlib.sha256(theirs.canonical(fields)).digest(), shard, extras)
        assert chain.parent.hex == key.hex()
        for tokens, block_extras in blocks:
            key = theirs.block_key(key, tokens, block_extras)
            ours_extras = [ExtraKey(kinds[kind - 1], value) for kind, value in block_extras]
            assert chain.next(tokens, ours_extras).hex == key.hex()
            compared += 1
    assert compared >= 15


def test_keys_of_shards_are_those_of_the_independent_implementation() -> None:
    theirs = independent()
    parts = ("tp_rank", "tp_size", "pp_rank", "pp_size", "kv_group")
    for name, shard, extras, names in theirs.SHARDS:
        spec = ModelSpec(**{"llama": theirs.LLAMA, "mla": theirs.MLA}[name])
        kinds = list(ExtraKey.Kind)
        ours = ShardKeys(
            spec,
            Shard(**dict(zip(parts, shard, strict=True))),
            [ExtraKey(kinds[kind - 1], value) for kind, value in extras],
        )
        root = theirs.shard_root(hashlib.sha256(spec.canonical().encode()).digest(), shard, extras)
        assert ours.root.hex == root.hex()
        keys = BlockKeys()
        ours.extend(keys, BlockKeys([BlockKey.from_hex(each.hex()) for each in names]))
        assert [key.hex for key in keys] == [theirs.shard_key(root, each).hex() for each in names]


@pytest.fixture
def chain() -> KeyChain:
    return KeyChain(spec())


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        range,
        lambda each: np.array(each, dtype=np.int32),
        lambda each: np.array(each, dtype=np.uint64),
        lambda each: np.repeat(np.array(each), 2)[::2],
        torch.tensor,
        lambda each: torch.tensor(each, dtype=torch.int32),
    ],
)
def test_token_ids_come_in_many_forms(chain: KeyChain, convert: object) -> None:
    tokens = list(range(12))
    root = chain.parent
    keys = chain.extend(tokens)
    chain.resume(root)
    converted = range(12) if convert is range else convert(tokens)  # type: ignore[operator]
    assert list(chain.extend(converted)) == list(keys)


@pytest.mark.parametrize("tokens", [[0, 1, 2, -1], [0, 1, 2, 1 << 32], torch.tensor([0, 1, 2, -5]), [0, 1, 2, 1 << 70]])
def test_ids_that_are_no_ids_are_refused(chain: KeyChain, tokens: object) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="token 3"):
        chain.extend(tokens)


@pytest.mark.parametrize("tokens", ["abcd", [1.5, 2.0, 3.0, 4.0], np.zeros(4), np.zeros((2, 2), dtype=int), None])
def test_what_is_no_token_list_is_a_type_error(chain: KeyChain, tokens: object) -> None:
    with pytest.raises(TypeError):
        chain.extend(tokens)


def test_a_partial_block_has_no_key(chain: KeyChain) -> None:
    assert len(chain.extend(list(range(11)))) == 2
    with pytest.raises(errors.InvalidArgumentError, match="has 4 tokens, not 3"):
        chain.next([1, 2, 3])


def test_everything_has_a_representation_and_a_spec_no_hash() -> None:
    assert repr(Geometry.contiguous(4, 64)) == "Geometry(4 blocks, 1 parts)"
    assert repr(Geometry.contiguous(4, 64).parts[0]).startswith("GeometryPart(segment=0, offset=0, chunk_bytes=64")
    assert repr(BlockWrite(5, 7)) == "BlockWrite(block=5, generation=7)"
    assert repr(spec()).startswith("ModelSpec(model_id='test/blocks', revision='r1'")
    with pytest.raises(TypeError, match="fingerprint"):
        hash(spec())
    assert hash(spec().fingerprint()) == hash(spec().fingerprint())


def test_plain_data_survives_pickling() -> None:
    keys = BlockKeys([BlockKey(1, 2), BlockKey(3, 4)])
    assert list(pickle.loads(pickle.dumps(keys))) == list(keys)
    assert pickle.loads(pickle.dumps(keys[1])) == BlockKey.from_hex(keys[1].hex)
    write = BlockWrite(5, 7)
    assert pickle.loads(pickle.dumps(write)) == write
    assert len({BlockKey(1, 2), BlockKey(1, 2), BlockKey(2, 1)}) == 2


def test_every_member_of_an_enumeration_is_bound() -> None:
    headers = ROOT / "client" / "include" / "kvclient"
    for header, name, bound in (
        ("import.h", "ImportFailure", kvclient.ImportFailure),
        ("match.h", "MatchEnd", kvclient.MatchEnd),
        ("region.h", "MemoryKind", kvclient.MemoryKind),
    ):
        text = (headers / header).read_text()
        body = re.search(rf"enum class {name}[^{{]*{{(.*?)}};", text, re.DOTALL)
        assert body is not None
        assert len(re.findall(r"^\s*k\w+ = \d+", body[1], re.MULTILINE)) == len(list(bound)) > 2


def test_the_counters_are_those_of_the_header_with_their_meanings() -> None:
    header = (ROOT / "client" / "include" / "kvclient" / "stats.h").read_text()
    counters = dict(re.findall(r'^  (?:REPORTED|COUNTED|CURRENT)\((\w+), "(.*)"\)', header, re.MULTILINE))
    bound = {name: member for name, member in vars(kvclient.ClientStats).items() if not name.startswith("_")}
    assert set(bound) == set(counters)
    assert {name: member.__doc__ for name, member in bound.items()} == counters


def test_gpus_are_listed_or_the_reason_why_there_are_none() -> None:
    if not torch.cuda.is_available():
        for call in (kvclient.list_devices, lambda: kvclient.device_at(0), lambda: kvclient.device_of(0)):
            with pytest.raises(errors.UnsupportedError, match=r"GPU|CUDA|driver"):
                call()
        return
    devices = kvclient.list_devices()
    assert [each.ordinal for each in devices] == list(range(torch.cuda.device_count()))
    assert [kvclient.device_at(each.ordinal) for each in devices] == [each.uuid for each in devices]
    with pytest.raises(errors.NotFoundError):
        kvclient.device_at(len(devices))


def test_waiting_leaves_the_interpreter_to_other_threads(kvmd: PrivateDaemon) -> None:
    client = kvclient.Client(kvmd.socket, name="waiting")
    kvmd.kill()
    while client.state is not kvclient.ConnectionState.CONNECTING:
        time.sleep(0.01)
    ticks = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.005)

    thread = threading.Thread(target=tick)
    thread.start()
    with pytest.raises(errors.DeadlineExceededError):
        client.wait_connected(0.5)
    done.set()
    thread.join()
    client.close()
    assert len(ticks) > 20, "a wait that holds the interpreter lock lets the other thread run once"


def test_a_forked_child_is_told_to_connect_anew(kvmd: PrivateDaemon) -> None:
    code = """
import os, sys, kvclient
client = kvclient.Client(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        client.stats()
    except kvclient.errors.UnsupportedError as error:
        print(error, flush=True)
    del client          # must not touch the parent's connection, nor hang
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
client.wait_connected(1.0)
print("parent", client.state.name)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, kvmd.socket], capture_output=True, text=True, timeout=30, check=True
    )
    assert "connect anew" in result.stdout
    assert "parent CONNECTED" in result.stdout


def test_the_package_is_typed() -> None:
    folder = Path(inspect.getfile(kvclient)).parent
    assert (folder / "py.typed").exists()
    stub = (folder / "_native.pyi").read_text()
    for name in kvclient.__all__:
        if name not in ("KvError", "__version__"):
            assert re.search(rf"^(class|def) {name}\b", stub, re.MULTILINE), name
    assert os.access(folder / "bin" / "kvmd", os.X_OK)


def become(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the package as if it were installed in ``folder``."""
    code = (
        "import sys, kvclient.programs as programs\n"
        f"programs.__file__ = {str(folder / 'programs.py')!r}\n"
        f"sys.argv = [{name!r}, '--socket', 'a b']\n"
        f"programs.{name}()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_command_becomes_the_program_in_the_package_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "kvmd"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 3\n')
    program.chmod(0o755)
    done = become("kvmd", tmp_path)
    assert (done.stdout, done.returncode) == ("--socket|a b|", 3)


def test_a_package_without_kvctl_says_where_there_is_one(tmp_path: Path) -> None:
    done = become("kvctl", tmp_path)
    assert done.returncode == 1
    assert "scripts/wheel.sh" in done.stderr
