"""The marketplace on GPUs from Python: engines' tensors as regions, streams, checksums, pools; two processes, one GPU
or two. A test that fails prints what both processes saw.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kvclient.daemon import PrivateDaemon, find_binary
from kvclient.errors import UnsupportedError
from kvclient.weights import parameters_digest
from support.block_worker import prompt
from support.gpu_worker import BLOCK_BYTES, LAYOUTS
from support.worker import Worker

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU; torch.cuda.is_available() is false here"
)

MODULE = "support.gpu_worker"
IMPORTERS = [0, 1] if torch.cuda.device_count() > 1 else [0]
BLOCKS = 24
SOURCES = [5, 6, 7, 3, 2, 1, 40, 42, 41, 10, 11, 12, 13, 0, 63, 20, 21, 22, 23, 24, 30, 29, 28, 33]
TARGETS = [50, 51, 49, 9, 8, 7, 30, 31, 32, 33, 2, 1, 0, 60, 61, 62, 10, 11, 12, 13, 14, 15, 16, 63]
SLEEP_CYCLES = 1_000_000_000  # about half a second
Start = Callable[..., Worker]


@pytest.fixture
def pair(kvmd: PrivateDaemon, start_worker: Start) -> Iterator[Callable[[int], tuple[Worker, Worker]]]:
    """An owner on GPU 0 and a reader on the GPU asked for."""

    def start(importer: int = IMPORTERS[-1]) -> tuple[Worker, Worker]:
        return start_worker(MODULE, kvmd.socket, "owner", 0), start_worker(MODULE, kvmd.socket, "reader", importer)

    yield start
    print(kvmd.log()[-4000:])  # shown if the test fails


def found(reader: Worker, tokens: list[int], blocks: int, seconds: float = 10.0) -> tuple[int, str]:
    """What the reader finds, once that is `blocks` or the time has passed."""
    end = time.monotonic() + seconds
    while True:
        seen = reader.call("find", tokens)
        if seen[0] == blocks or time.monotonic() > end:
            return (int(seen[0]), str(seen[1]))
        time.sleep(0.01)


@pytest.mark.parametrize("importer", IMPORTERS)
@pytest.mark.parametrize("pool", [False, True], ids=["torch's memory", "mem_pool"])
def test_every_layout_is_published_and_imported_byte_for_byte(
    pair: Callable[[int], tuple[Worker, Worker]], importer: int, pool: bool
) -> None:
    owner, reader = pair(importer)
    names = list(LAYOUTS)
    for number, layout in enumerate(names):
        theirs = owner.call("open", layout, pool)
        ours = reader.call("open", names[number - 1], pool)
        print(layout, theirs, ours)
        assert theirs["kind"] == ours["kind"] == ("CUDA_VMM_FD" if pool else "CUDA_IPC")
        tokens = prompt(BLOCKS, seed=number + 1)
        told = owner.call("publish", tokens, SOURCES)
        assert told["published"] == BLOCKS, told
        assert found(reader, tokens, BLOCKS) == (BLOCKS, "COMPLETE"), reader.call("describe")
        for on_stream in (False, True):
            got = reader.call("fetch", tokens, TARGETS, on_stream=on_stream, max_sms=4 if on_stream else 0)
            assert (got["valid"], got["wrong"], got["failed"]) == (BLOCKS, [], []), got
            assert (got["event"] is not None) == on_stream, got
        assert got["unmapped"] == []


def test_devices_have_one_name_in_every_process(pair: Callable[[int], tuple[Worker, Worker]]) -> None:
    for worker in pair(IMPORTERS[-1]):
        seen = worker.call("open", "cross-layer", False)
        assert seen["device"] == seen["uuid"] == seen["of_pointer"], seen
        assert seen["back"] == f"cuda:{seen['ordinal']}", seen


def test_a_publish_takes_effect_behind_its_stream_and_delays_nobody(
    pair: Callable[[int], tuple[Worker, Worker]],
) -> None:
    owner, reader = pair(IMPORTERS[-1])
    owner.call("open", "[2, blocks, ...]", True)
    reader.call("open", "[2, blocks, ...]", True)
    owner.call("publish", prompt(4, seed=9), [1, 2, 3, 4])  # what is slow only once
    tokens = prompt(8)
    told = owner.call("publish", tokens, list(range(8)), sleep_cycles=SLEEP_CYCLES)
    assert told["published"] == 8, told
    assert told["stream_busy"], f"the GPU slept too short for this test to say anything: {told}"
    assert not told["readable"], told
    assert told["call_s"] < 0.2, told
    got = reader.call("fetch", tokens, list(range(8)))
    assert (got["valid"], got["wrong"]) == (8, []), got


def test_an_import_follows_the_stream_that_it_is_given(pair: Callable[[int], tuple[Worker, Worker]]) -> None:
    owner, reader = pair(IMPORTERS[-1])
    owner.call("open", "MLA", False)
    reader.call("open", "MLA", False)
    tokens = prompt(8)
    owner.call("publish", tokens, list(range(8)))
    assert found(reader, tokens, 8)[0] == 8
    reader.call("fetch", tokens, list(range(8)), on_stream=True)  # what is slow only once
    got = reader.call("fetch", tokens, list(range(8, 16)), on_stream=True, sleep_cycles=SLEEP_CYCLES)
    assert got["stream_busy"], f"the GPU slept too short for this test to say anything: {got}"
    assert not got["done"], got
    assert (got["valid"], got["wrong"]) == (8, []), got


@pytest.mark.parametrize("pool", [False, True], ids=["torch's memory", "mem_pool"])
def test_blocks_that_were_rewritten_since_are_a_miss(pair: Callable[[int], tuple[Worker, Worker]], pool: bool) -> None:
    owner, reader = pair(IMPORTERS[-1])
    owner.call("open", "separate K and V", pool)
    reader.call("open", "separate K and V", pool)
    tokens = prompt(BLOCKS)
    owner.call("publish", tokens, SOURCES)
    assert found(reader, tokens, BLOCKS)[0] == BLOCKS
    assert reader.call("hold", tokens) == BLOCKS
    owner.call("publish", prompt(1, seed=7), [SOURCES[10]])  # the block now holds something else
    got = reader.call("fetch", tokens, TARGETS, held=True)
    assert (got["valid"], got["wrong"]) == (10, []), got
    assert got["failed"][:2] == [(10, "STALE"), (11, "BEHIND_FAILED")], got
    assert found(reader, tokens, 10)[0] == 10
    owner.call("retract", [SOURCES[3]])
    assert found(reader, tokens, 3)[0] == 3


def test_a_corrupted_block_is_found_by_those_who_ask(pair: Callable[[int], tuple[Worker, Worker]]) -> None:
    owner, reader = pair(IMPORTERS[-1])
    owner.call("open", "[blocks, 2, ...]", True, checksums=True)
    reader.call("open", "cross-layer", False)
    tokens = prompt(BLOCKS)
    owner.call("publish", tokens, SOURCES)
    assert found(reader, tokens, BLOCKS)[0] == BLOCKS
    got = reader.call("fetch", tokens, TARGETS, verify=True)
    assert (got["valid"], got["wrong"]) == (BLOCKS, []), got
    owner.call("corrupt", SOURCES[17])
    without = reader.call("fetch", tokens, TARGETS)
    assert without["valid"] == BLOCKS, without
    assert [index for index, *_ in without["wrong"]] == [17], "this test can find a wrong byte"
    got = reader.call("fetch", tokens, TARGETS, verify=True)
    assert (got["valid"], got["wrong"]) == (17, []), got
    assert got["failed"][:2] == [(17, "CORRUPT"), (18, "BEHIND_FAILED")], got


def test_kvctl_shows_a_pool_as_what_it_is(kvmd: PrivateDaemon, pair: Callable[[int], tuple[Worker, Worker]]) -> None:
    owner, reader = pair(IMPORTERS[-1])
    theirs = owner.call("open", "separate K and V", True)
    reader.call("open", "separate K and V", False)
    kvctl = Path(find_binary()).with_name("kvctl")
    if not kvctl.exists():
        pytest.skip(f"no {kvctl}")
    output = subprocess.run(
        [str(kvctl), "--socket", kvmd.socket, "regions", "--json"], capture_output=True, text=True, check=False
    )
    assert output.returncode == 0, output.stderr
    regions = {each["name"]: each for each in json.loads(output.stdout)["regions"]}
    assert regions["owner"]["handle_kind"] == "cuda_vmm_fd", output.stdout
    assert regions["owner"]["device"] == theirs["device"], output.stdout
    assert regions["reader"]["handle_kind"] == "cuda_ipc", output.stdout


def test_the_death_of_an_owner_is_a_miss_and_no_more(
    kvmd: PrivateDaemon, pair: Callable[[int], tuple[Worker, Worker]], start_worker: Start
) -> None:
    owner, reader = pair(IMPORTERS[-1])
    owner.call("open", "[2, blocks, ...]", True)
    reader.call("open", "[2, blocks, ...]", True)
    tokens = prompt(BLOCKS)
    owner.call("publish", tokens, SOURCES)
    assert found(reader, tokens, BLOCKS)[0] == BLOCKS
    got = reader.call("fetch", tokens, TARGETS)
    assert (got["valid"], got["wrong"]) == (BLOCKS, []), got
    assert reader.call("hold", tokens) == BLOCKS
    owner.kill()
    got = reader.call("fetch", tokens, TARGETS, held=True)
    assert got["wrong"] == [], got
    assert got["valid"] in (0, BLOCKS), f"all there still, or all gone: {got}"
    # Nothing of this GPU's context has been hurt, and the next owner is found.
    again = start_worker(MODULE, kvmd.socket, "owner-again", 0)
    again.call("open", "[blocks, 2, ...]", True)
    later = prompt(BLOCKS, seed=2)
    again.call("publish", later, SOURCES)
    assert found(reader, later, BLOCKS)[0] == BLOCKS
    got = reader.call("fetch", later, TARGETS)
    assert (got["valid"], got["wrong"], got["unmapped"]) == (BLOCKS, [], []), got


@pytest.mark.parametrize("pool", [False, True], ids=["torch's memory", "mem_pool"])
def test_a_region_keeps_its_tensors_memory_and_then_gives_it_back(
    kvmd: PrivateDaemon, start_worker: Start, pool: bool
) -> None:
    owner = start_worker(MODULE, kvmd.socket, "owner", 0)
    opened = owner.call("open", "separate K and V", pool)
    assert (opened["in_use"][0] > 0) == pool, opened
    tokens = prompt(BLOCKS)
    owner.call("publish", tokens, SOURCES)
    assert owner.call("forget_tensors", tokens, SOURCES) == BLOCKS
    assert owner.call("close_region") == (0, 0)


def test_expandable_segments_are_refused_with_advice_that_works(kvmd: PrivateDaemon, start_worker: Start) -> None:
    owner = start_worker(MODULE, kvmd.socket, "owner", 0, True)
    reader = start_worker(MODULE, kvmd.socket, "reader", IMPORTERS[-1])
    with pytest.raises(UnsupportedError, match=r"kvclient\.torch\.mem_pool"):
        owner.call("open", "[2, blocks, ...]", False)
    reader.call("open", "[2, blocks, ...]", False)
    assert owner.call("open", "[2, blocks, ...]", True)["kind"] == "CUDA_VMM_FD"
    tokens = prompt(BLOCKS)
    owner.call("publish", tokens, SOURCES)
    assert found(reader, tokens, BLOCKS)[0] == BLOCKS
    got = reader.call("fetch", tokens, TARGETS)
    assert (got["valid"], got["wrong"]) == (BLOCKS, []), got


@pytest.mark.parametrize("device", IMPORTERS)
def test_memory_that_libkvclient_allocates_is_a_tensor_too(
    kvmd: PrivateDaemon, start_worker: Start, device: int
) -> None:
    seen = start_worker(MODULE, kvmd.socket, "owner", device).call("own_memory", "own")
    assert (seen["kind"], seen["index"], seen["bytes"]) == ("cuda", device, 4 * BLOCK_BYTES), seen
    assert seen["zeroed"], seen
    assert seen["by_view"], seen
    assert seen["by_bytes"], seen
    assert len(seen["refused"]) == 2, seen
    assert all("kvclient.torch" in message for message in seen["refused"]), seen


def test_ctrl_c_ends_the_wait_for_an_import_and_not_the_import(
    pair: Callable[[int], tuple[Worker, Worker]],
) -> None:
    owner, reader = pair()
    tokens = prompt(BLOCKS)
    for worker in (owner, reader):
        worker.call("open", "MLA", True)
    owner.call("publish", tokens, SOURCES)
    assert found(reader, tokens, BLOCKS) == (BLOCKS, "COMPLETE"), reader.call("describe")
    seen = reader.call("interrupted_wait", tokens, TARGETS, 10 * SLEEP_CYCLES)
    assert seen == {"outcome": "interrupted", "stream_busy": True, "valid": BLOCKS}


def test_weights_on_a_gpu_are_read_there_to_the_last_bit() -> None:
    tensor = torch.randn(4097, 333, device="cuda").bfloat16()
    before = parameters_digest({"weight": tensor})
    assert before == parameters_digest({"weight": tensor.cpu()})
    tensor.view(torch.int16)[4096, 332] ^= 1
    assert before != parameters_digest({"weight": tensor})


def test_the_example_imports_every_byte() -> None:
    demo = Path(__file__).resolve().parents[2] / "client" / "python" / "examples" / "two_gpu_demo.py"
    result = subprocess.run(
        [sys.executable, str(demo), "--layers", "4", "--blocks", "64", "--rounds", "2"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    print(result.stdout, result.stderr)
    assert result.returncode == 0
    assert result.stdout.count("64 blocks, 0 wrong") == 2
