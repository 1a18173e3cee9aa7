"""A small machine with systemd of its own: a root directory that systemd-nspawn boots, and commands in it."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

PATIENCE_S = 60
POWER_OFF = signal.SIGRTMIN + 4  # to systemd as process 1
CONTROL_GROUPS = pathlib.Path("/sys/fs/cgroup")
MEMORY_V1 = CONTROL_GROUPS / "memory"
# Hierarchies beside cgroup v2's own, where systemd would use the groups of another machine, or of
# this one.
HIERARCHIES = (MEMORY_V1, CONTROL_GROUPS / "systemd", CONTROL_GROUPS / "unified")


def eventually(what, done, patience_s=PATIENCE_S):
    """Wait until `done` returns something true, and return that."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = done()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come about in {patience_s} s"
        time.sleep(0.05)


class CannotBootError(Exception):
    """Booting a machine is not possible on this computer, or in the container that the test runs in."""


class Machine:
    """Boots a copy of `root` in `folder`. `install(root)` puts into it what it needs before."""

    def __init__(self, root, folder, install):
        """Nothing runs yet."""
        self.folder = pathlib.Path(folder)
        self.root = self.folder / "root"
        self.log = self.folder / "console.log"
        self.nspawn = None
        self.leader = 0
        self.groups = []
        subprocess.run(["cp", "-a", "--reflink=auto", str(root), str(self.root)], check=True)
        install(self.root)

    def __enter__(self):
        """Boot, and wait until everything has started. CannotBootError: it can't be booted, and why."""
        for hierarchy in HIERARCHIES:
            if (hierarchy / "cgroup.procs").exists():
                group = hierarchy / f"kvmd-test-systemd-{os.getpid()}"
                try:
                    group.mkdir()
                except OSError as error:
                    self.__exit__()
                    raise CannotBootError(f"no control group: {error}") from error
                self.groups.append(group)
        join = "".join(f"echo $$ > {group}/cgroup.procs && " for group in self.groups)
        enter = ["/bin/sh", "-c", join + 'exec "$0" "$@"']
        command = ["systemd-nspawn", "-bD", str(self.root), "--register=no", "--keep-unit", "--console=pipe", "--quiet"]
        with open(self.log, "wb") as log:
            self.nspawn = subprocess.Popen(enter + command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.leader = eventually("the machine's first process", self._find_leader)
            eventually("the machine's start", self._has_started)
            if MEMORY_V1.exists():
                # systemd-nspawn leaves cgroup v1 read-only, so that limits of units would not be
                # set.
                self.run("mount", "-o", "remount,bind,rw", str(MEMORY_V1))
                self.run("systemctl", "daemon-reexec")
                eventually("systemd's second start", lambda: self.run("systemctl", "is-system-running").returncode == 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Switch off, in good order if it takes its time."""
        if self.leader:
            os.kill(self.leader, POWER_OFF)
        if self.nspawn is not None:
            self._wait_for_end()
        for group in self.groups:
            for folder, _, _ in os.walk(group, topdown=False):
                eventually("an empty group", lambda folder=folder: self._remove(folder), 10)
        shutil.rmtree(self.root, ignore_errors=True)

    def _wait_for_end(self):
        try:
            self.nspawn.wait(20 if self.leader else 0)
        except subprocess.TimeoutExpired:
            self.nspawn.kill()
            self.nspawn.wait()

    @staticmethod
    def _remove(group):
        for pid in pathlib.Path(group, "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.rmdir(group)
        except OSError:
            return not os.path.exists(group)
        return True

    def _still_boots(self):
        said = self.log.read_text(errors="replace").strip()
        if self.nspawn.poll() is not None:
            raise CannotBootError(f"systemd-nspawn ended with {self.nspawn.returncode}: {said}")
        # As systemd does when it lacks what it needs to run at all
        if "Freezing execution" in said:
            raise CannotBootError(f"systemd: {said}")

    def _has_started(self):
        self._still_boots()
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def _find_leader(self):
        self._still_boots()
        children = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split()
        for pid in children:
            try:
                program = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                continue
            # It becomes systemd after it has made its namespaces.
            if "systemd" in program and "nspawn" not in program:
                return int(pid)
        return 0

    def command(self, *arguments):
        """The command line that runs `arguments` in the machine: its namespaces, and a group of its own."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"]
        join = "for g in /sys/fs/cgroup/memory /sys/fs/cgroup; do echo $$ >$g/init.scope/cgroup.procs; done 2>/dev/null"
        return [*enter, "sh", "-c", join + '; exec "$0" "$@"', *arguments]

    def regions(self, kvctl):
        """{name: state} of the regions in root's domain, as this kvctl says."""
        listed = json.loads(self.run(kvctl, "regions", "--json", check=True).stdout)
        return {region["name"]: region["state"] for region in listed["regions"]}

    def run(self, *arguments, check=False):
        """Run to the end; its output as text."""
        return subprocess.run(
            self.command(*arguments),
            check=check,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )
