#!/usr/bin/env python3
"""Starts kvmd the way kvmd.service and kvmd.socket do, and checks what the service manager relies on.

    check_activation.py KVMD KVCTL

kvmd takes the socket it is passed, says READY=1 only once it answers, STOPPING=1 on SIGTERM, exits 0, and
leaves the socket's file alone, since the service manager owns it.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

TIMEOUT_S = 30
FIRST_PASSED_FD = 3


def start(kvmd, listener, notify_path):
    """Kvmd with `listener` as descriptor 3; LISTEN_PID must be kvmd's own."""
    pid = os.fork()
    if pid == 0:
        os.dup2(listener.fileno(), FIRST_PASSED_FD)
        # dup2 changes no flag if both descriptors are the same
        os.set_inheritable(FIRST_PASSED_FD, True)
        environment = dict(os.environ, LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), NOTIFY_SOCKET=str(notify_path))
        os.execve(kvmd, [kvmd, "--log-level", "warn"], environment)
    return pid


def expect(notify, *states):
    """The next message but those that store descriptors has these lines."""
    message = notify.recv(4096).decode()
    while message.startswith("FDSTORE"):
        message = notify.recv(4096).decode()
    for state in states:
        assert state in message.splitlines(), f"expected {state}, the service manager heard {message!r}"


def main():
    kvmd, kvctl = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kvmd.sock"
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"{folder}/notify.sock")
        notify.settimeout(TIMEOUT_S)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        pid = start(kvmd, listener, f"{folder}/notify.sock")
        listener.close()
        try:
            expect(notify, "READY=1", f"STATUS=Listening on {path}")
            subprocess.run(
                [kvctl, "status", "--socket", str(path)], check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT_S
            )
            os.kill(pid, signal.SIGTERM)
            expect(notify, "STOPPING=1")
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"kvmd ended with {os.waitstatus_to_exitcode(status)}"
        assert path.is_socket(), "kvmd removed the service manager's socket file"


if __name__ == "__main__":
    main()
