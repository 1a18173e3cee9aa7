"""The end of a Python process causes no warning in kvmd's log."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvclient
from kvclient.daemon import PrivateDaemon
from support.block_worker import spec
from support.waiting import eventually

# A worker that ends as scripts do: nothing is closed, everything is global.
SCRIPT = """
import sys
import kvclient
from support.block_worker import spec

client = kvclient.Client(sys.argv[1], name="leaver")
model = client.declare_model(spec())
region = client.allocate_region(model, kvclient.Geometry.contiguous(8, 4096), name="leaver")
array = region.segment()
chain = kvclient.KeyChain(model)
root, keys = chain.parent, chain.extend(list(range(32)))
region.publish_run(keys, root, 0, region.begin_writes(range(8)))
region.flush()
print("published", flush=True)
sys.stdin.readline()
if sys.argv[2] == "closes":
    client.close()
elif sys.argv[2] == "raises":
    raise RuntimeError("the script's own")
"""


@pytest.fixture
def warning_kvmd() -> Iterator[PrivateDaemon]:
    """One whose log has warnings and errors only."""
    with PrivateDaemon(("--log-level", "warn")) as daemon:
        yield daemon


@pytest.mark.parametrize("how", ["ends", "closes", "raises"])
def test_a_process_that_ends_makes_kvmd_warn_of_nothing(warning_kvmd: PrivateDaemon, how: str) -> None:
    reader = kvclient.Client(warning_kvmd.socket, name="reader")
    model = reader.declare_model(spec())
    keys = kvclient.KeyChain(model).extend(list(range(32)))
    leaver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, warning_kvmd.socket, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parent,
        text=True,
    )
    assert leaver.stdout is not None
    assert leaver.stdout.readline() == "published\n"
    eventually(lambda: len(reader.find(keys)) == 8)
    leaver.communicate("\n", timeout=20)
    assert leaver.returncode == (1 if how == "raises" else 0)
    eventually(lambda: reader.stats().mapped_regions == 0)
    assert len(reader.find(keys)) == 0
    assert warning_kvmd.log() == ""
