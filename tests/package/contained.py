#!/usr/bin/env python3
"""kvmd and a worker in namespaces like those that client/packaging/deploy/compose.yaml asks for.

    contained.py --source DIR --bin DIR --example PROGRAM

kvmd runs as the file's user, without capabilities, network or a writable root; the worker as another user in
other namespaces, with the socket's directory mounted read-only. They share blocks, also after kvmd was started anew.
A mount of the socket itself does not survive that, which is why the file mounts the directory. Exit code 77: it
can't run here; the reason is said.
"""

import argparse
import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from manifests import HERE, yaml


def skip(why):
    print(f"SKIPPED: {why}")
    sys.exit(77)


class Container:
    """Runs commands as a service of the compose file would: user, namespaces, mounts, rights."""

    def __init__(self, service, sources):
        """`sources`: {path of the host in the file: what stands for it here}."""
        self.user, self.group = service["user"].split(":")
        self.options = ["--mount", "--propagation=private", "--ipc", "--uts", "--fork", "--kill-child"]
        if service.get("pid") != "host":
            self.options += ["--pid", "--mount-proc"]
        if service.get("network_mode") == "none":
            self.options.append("--net")
        # What a container has of /run is its own.
        steps = ["mount -t tmpfs tmpfs /run"]
        for volume in service["volumes"]:
            host, inside, *flags = volume.split(":")
            if host not in sources:
                continue
            source = sources[host]
            make = (
                f"mkdir -p {inside}"
                if os.path.isdir(source)
                else f"mkdir -p {os.path.dirname(inside)} && touch {inside}"
            )
            steps += [make, f"mount --bind {source} {inside}"]
            if "ro" in flags:
                steps.append(f"mount -o remount,bind,ro {inside}")
        if service.get("read_only"):
            steps += ["mount -o remount,ro /run", "mount -o remount,bind,ro /"]
        rights = ["setpriv", f"--reuid={self.user}", f"--regid={self.group}", "--clear-groups"]
        if service.get("cap_drop") == ["ALL"]:
            rights += ["--bounding-set=-all", "--inh-caps=-all"]
        if "no-new-privileges:true" in service.get("security_opt", ()):
            rights.append("--no-new-privs")
        descriptors = service.get("ulimits", {}).get("nofile", 1 << 20)
        # Not all roots may raise the hard limit.
        descriptors = min(descriptors, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
        self.start = " && ".join(steps) + " && exec " + " ".join([*limit, *rights]) + ' "$0" "$@"'

    def command(self, *arguments):
        return ["unshare", *self.options, "--", "sh", "-c", self.start, *(str(each) for each in arguments)]

    def run(self, *arguments):
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120)


def process_of(program):
    """The number of the process that runs this program, once there is one."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(folder / "exe") == str(program):
                return int(folder.name)
    return None


@contextlib.contextmanager
def running(container, kvmd, socket):
    """Kvmd in its container; yields the number of its process, as this machine has it."""
    process = subprocess.Popen(
        container.command(kvmd, "--socket", socket, "--host-cache", "64M", "--log-level", "warn")
    )
    try:
        deadline = time.monotonic() + 60
        while (pid := process_of(kvmd)) is None or container.run(kvmd.parent / "kvctl", "status").returncode != 0:
            assert process.poll() is None, "kvmd has ended"
            assert time.monotonic() < deadline, "kvmd is not healthy"
            time.sleep(0.05)
        yield pid
    finally:
        # A process that has changed its user does not end with its parent.
        if (pid := process_of(kvmd)) is not None:
            os.kill(pid, signal.SIGKILL)
        process.wait(20)


def check_rights(pid, user):
    status = dict(
        line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [user] * 4, status["Uid"]
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0, (status["CapBnd"], status["CapEff"])
    assert status["NoNewPrivs"] == "1"
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    with contextlib.suppress(FileNotFoundError):
        assert "ro" in next(
            line.split()[5].split(",")
            for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
            if line.split()[4] == "/"
        )


def main():
    parser = argparse.ArgumentParser()
    for name in ("source", "bin", "example"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        skip("only root can make such namespaces and be other users")
    for program in ("unshare", "setpriv", "prlimit"):
        if shutil.which(program) is None:
            skip(f"no {program} here")
    services = yaml.safe_load((arguments.source / HERE / "compose.yaml").read_text())["services"]
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        os.chmod(folder, 0o755)
        for program in (arguments.bin / "kvmd", arguments.bin / "kvctl", arguments.example):
            shutil.copy(program, folder)
        kvmd, kvctl, example = (folder / name for name in ("kvmd", "kvctl", arguments.example.name))
        # What the service "directory" does.
        subprocess.run([*services["directory"]["entrypoint"][:-1], str(folder / "run")], check=True)
        server = Container(services["kvmd"], {"/run/kvmd": folder / "run"})
        if server.run("true").returncode != 0:
            skip(f"no such namespaces here: {server.run('true').stderr}")
        worker = Container(services["worker"], {"/run/kvmd": folder / "run"})
        socket = "/run/kvmd/kvmd.sock"
        expected = (arguments.source / "tests/examples/share.txt").read_text()
        print("kvmd has the rights that the file gives it, and two processes of another container share")
        with running(server, kvmd, socket) as pid:
            check_rights(pid, server.user)
            shared = worker.run(example, socket)
            assert shared.stdout == expected, shared.stdout + shared.stderr
            assert worker.run("touch", "/run/kvmd/file").returncode != 0, "the worker may write the socket's directory"
            by_socket = subprocess.Popen(
                Container(
                    {**services["worker"], "volumes": [f"{socket}:{socket}"]}, {socket: folder / "run/kvmd.sock"}
                ).command(
                    "sh",
                    "-c",
                    f"{kvctl} status >/dev/null && echo up && read line; {kvctl} status >/dev/null 2>&1; echo $?",
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert by_socket.stdout.readline() == "up\n"
        print("the same after kvmd was started anew; a container that has the socket itself finds none")
        with running(server, kvmd, socket):
            shared = worker.run(example, socket)
            assert shared.stdout == expected, shared.stdout + shared.stderr
            assert by_socket.communicate("\n", timeout=60)[0] == "2\n"
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
