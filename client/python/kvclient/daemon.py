"""A private kvmd for tests and examples. In production one kvmd serves the whole node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kvclient._native import Client
from kvclient.errors import DeadlineExceededError, NotFoundError, UnavailableError

DEFAULT_SOCKET = "/run/kvmd/kvmd.sock"


def default_socket() -> str:
    """Path of the node's socket: ``$KVMD_SOCKET``, else ``/run/kvmd/kvmd.sock``."""
    return os.environ.get("KVMD_SOCKET") or DEFAULT_SOCKET


def find_binary() -> str:
    """Path of a kvmd: ``$KVMD_BINARY``, else the one that was installed with this package, else one in ``PATH``.

    NotFoundError: none of them exists; the message says how to get one.
    """
    given = os.environ.get("KVMD_BINARY")
    if given:
        if os.access(given, os.X_OK):
            return given
        raise NotFoundError(f"KVMD_BINARY is {given}, which is not a program")
    packaged = Path(__file__).parent / "bin" / "kvmd"
    if os.access(packaged, os.X_OK):
        return str(packaged)
    found = shutil.which("kvmd")
    if found:
        return found
    raise NotFoundError(
        "no kvmd: neither $KVMD_BINARY, nor in this package, nor in PATH. Install the package again "
        "(pip install ./client/python builds kvmd too), or build one with "
        "`cmake --preset release && cmake --build --preset release --target kvmd` and set "
        "KVMD_BINARY=build/release/bin/kvmd."
    )


def is_running(socket_path: str | None = None, timeout_s: float = 0.5) -> bool:
    """Say whether a kvmd answers on the socket. Waits at most ``timeout_s``."""
    try:
        Client(socket_path or default_socket(), name="probe", timeout_s=timeout_s, map_payload=False).close()
    except (UnavailableError, DeadlineExceededError):
        return False
    return True


class PrivateDaemon:
    """A kvmd process on a socket in a temporary folder; ``stop()`` ends the process and removes the folder.

    Not thread-safe. It can be killed and started again on the same socket, which is what tests of restarts do.
    """

    def __init__(self, arguments: Sequence[str] = (), binary: str | None = None) -> None:
        """Prepare, don't start. ``arguments``: kvmd's options besides the socket. NotFoundError: no kvmd."""
        self._binary = binary or find_binary()
        self._arguments = list(arguments)
        self._directory: str | None = tempfile.mkdtemp(prefix="kvmd-")
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = os.path.join(self._directory, "kvmd.sock")

    @property
    def pid(self) -> int | None:
        """Process id, None while it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def log(self) -> str:
        """What kvmd has written to its log so far."""
        if self._directory is None:
            return ""
        path = Path(self._directory) / "kvmd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, timeout_s: float = 10.0) -> PrivateDaemon:
        """Start it and wait until it answers. UnavailableError: it ended at once. DeadlineExceededError."""
        if self._directory is None:
            raise UnavailableError("this kvmd has been stopped")
        if self.pid is not None:
            return self
        with open(os.path.join(self._directory, "kvmd.log"), "ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "--socket", self.socket, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + timeout_s
        while not is_running(self.socket):
            if self._process.poll() is not None:
                raise UnavailableError(f"{self._binary} ended with {self._process.returncode}: {self.log()[-2000:]}")
            if time.monotonic() > deadline:
                raise DeadlineExceededError(f"{self._binary} did not answer within {timeout_s} s: {self.log()[-2000:]}")
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash would. The socket's folder stays for the next ``start()``."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it and remove its folder. Safe to call twice."""
        self._end(signal.SIGTERM)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"kvmd {process.pid} had to be killed", file=sys.stderr)

    def __enter__(self) -> PrivateDaemon:
        """Start it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


__all__ = ["DEFAULT_SOCKET", "PrivateDaemon", "default_socket", "find_binary", "is_running"]
