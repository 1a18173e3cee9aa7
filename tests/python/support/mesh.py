"""A kvmd-mesh for tests of several nodes on one machine."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon


def mesh_binary() -> str:
    """The kvmd-mesh that was built beside the kvmd under test; without one there is nothing to test."""
    beside = pathlib.Path(os.environ.get("KVMD_BINARY", "kvmd")).with_name("kvmd-mesh")
    found = str(beside) if beside.is_file() else shutil.which("kvmd-mesh")
    if found is None:
        pytest.skip("no kvmd-mesh beside KVMD_BINARY or in PATH")
    return found


class MeshProcess:
    """A kvmd-mesh beside a kvmd, on a port of the loopback that the kernel chooses."""

    def __init__(
        self, kvmd: PrivateDaemon, node: str, peers: tuple[str, ...] = (), options: tuple[str, ...] = ()
    ) -> None:
        self.socket = self.socket_beside(kvmd)
        command = [mesh_binary(), "--node", node, "--socket", kvmd.socket, "--mesh-socket", self.socket]
        command += ["--listen", "127.0.0.1:0", "--pull-interval-ms", "50", "--pool-size", "1M", "--staging-size", "64K"]
        for peer in peers:
            command += ["--peers", peer]
        command += options
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.as_peer = f"{node}={self._process.stdout.readline().split()[-1]}"

    @staticmethod
    def socket_beside(kvmd: PrivateDaemon) -> str:
        """Where the kvmd-mesh beside this kvmd listens."""
        return str(pathlib.Path(kvmd.socket).with_name("mesh.sock"))

    def status(self) -> dict[str, Any]:
        """What ``kvctl mesh status`` says."""
        kvctl = pathlib.Path(mesh_binary()).with_name("kvctl")
        command = [kvctl, "mesh", "status", "--json", "--mesh-socket", self.socket, "--timeout-ms", "60000"]
        status: dict[str, Any] = json.loads(subprocess.check_output(command))
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP, for one."""
        self._process.send_signal(number)

    def stop(self) -> None:
        """May be called again."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
