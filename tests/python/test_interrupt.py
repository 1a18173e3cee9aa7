"""Ctrl-C ends calls that wait for a kvmd which does not answer, and leaves everything in a sound state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from kvclient.daemon import PrivateDaemon

HERE = Path(__file__).resolve().parent
INTERRUPTED = ("connect", "wait_connected", "declare", "allocate", "adopt", "reclaim", "hold", "flush", "unregister")


def test_ctrl_c_ends_every_call_that_waits_and_leaves_nothing_behind(kvmd: PrivateDaemon) -> None:
    command = [sys.executable, "-m", "support.interrupted", kvmd.socket, str(kvmd.pid)]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.communicate(timeout=90)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[0] + "(does not end)"
    finally:
        if kvmd.pid is not None:
            os.kill(kvmd.pid, signal.SIGCONT)
    assert said.splitlines() == [
        *(f"{name} KeyboardInterrupt" for name in INTERRUPTED),
        "again returned",
        "close_region KeyboardInterrupt",
        "closed True",
        "other_threads_call KeyboardInterrupt",
        "raising_handler AlarmError",
        "quiet_handler returned",
    ], said
    assert process.returncode == 0
