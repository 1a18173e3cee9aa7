"""A process ends as Python says it ends, whatever its threads are doing with kvclient and whatever is still alive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvclient.daemon import PrivateDaemon
from support.ending import IN_A_THREAD

HERE = Path(__file__).resolve().parent


def end(kvmd: PrivateDaemon, case: str) -> tuple[list[int], str]:
    """Exit codes of three processes, and what they said."""
    command = [sys.executable, "-m", "support.ending", kvmd.socket, case]
    processes = [
        subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    try:
        said = "".join(process.communicate(timeout=100)[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert said.count("ready\n") == 3, said
    return [process.returncode for process in processes], said


@pytest.mark.parametrize("case", IN_A_THREAD)
def test_daemon_threads_inside_of_kvclient_do_not_change_how_the_process_ends(kvmd: PrivateDaemon, case: str) -> None:
    codes, said = end(kvmd, case)
    assert codes == [0, 0, 0], said


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("objects_alive", 0),
        ("cycle", 0),
        ("used_at_exit", 0),
        ("closed_at_exit", 0),
        ("exit_in_a_thread", 0),
        ("thread_goes_on", 0),
        ("exit_code", 3),
        ("exception", 1),
        ("os_exit", 4),
    ],
)
def test_the_exit_code_is_pythons(kvmd: PrivateDaemon, case: str, code: int) -> None:
    codes, said = end(kvmd, case)
    assert codes == [code] * 3, said
    assert case != "thread_goes_on" or said.count("flushed") == 3
