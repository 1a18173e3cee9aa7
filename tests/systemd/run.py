#!/usr/bin/env python3
"""kvmd's unit under a real systemd: hardening, limits, restarts.

    run.py --root ROOT --build BUILD_DIR --worker BINARY

ROOT is what make_root.sh makes, and is made if it isn't there; BINARY has the child "pod-worker"
(tests/integration/test_memory_limits.cc). Exit code 77: it can't run here; the reason is said.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from machine import CannotBootError, Machine, eventually

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent.parent
SOCKET = "/run/kvmd/kvmd.sock"
CAP_SYS_RESOURCE = 24


def skip(why):
    print(f"SKIPPED: {why}")
    sys.exit(77)


def libraries_of(binaries):
    """Paths of the shared libraries that `binaries` need."""
    found = set()
    for binary in binaries:
        listed = subprocess.run(["ldd", str(binary)], check=True, capture_output=True, text=True).stdout
        found.update(re.findall(r"=> (/\S+)", listed))
    return sorted(found)


class Install:
    """Puts the programs, the unit and its files to where `cmake --install` does."""

    def __init__(self, build, worker):
        self.build = build
        self.worker = worker
        unit = (build / "systemd/kvmd.service").read_text()
        start = re.search(r"^ExecStart=(\S+) --config (\S+)", unit, re.M)
        self.kvmd, self.config = start[1], start[2]
        self.kvctl = os.path.join(os.path.dirname(self.kvmd), "kvctl")

    def __call__(self, root):
        files = [
            (self.build / "bin/kvmd", self.kvmd, 0o755),
            (self.build / "bin/kvctl", self.kvctl, 0o755),
            (self.worker, "/usr/local/bin/worker", 0o755),
            (self.build / "systemd/kvmd.service", "/usr/lib/systemd/system/kvmd.service", 0o644),
            (SOURCE / "systemd/kvmd.socket", "/usr/lib/systemd/system/kvmd.socket", 0o644),
            (SOURCE / "systemd/kvmd.sysusers.conf", "/usr/lib/sysusers.d/kvmd.conf", 0o644),
            (SOURCE / "systemd/kvmd.tmpfiles.conf", "/usr/lib/tmpfiles.d/kvmd.conf", 0o644),
            (SOURCE / "systemd/kvmd.toml", self.config, 0o644),
        ]
        for source, target, mode in files:
            path = root / target.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
            path.chmod(mode)
        # The root has none but systemd's; libc and others that both need stay its own.
        for library in libraries_of([self.build / "bin/kvmd", self.build / "bin/kvctl", self.worker]):
            path = root / library.lstrip("/")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(library, path)
        # Far below what the unit asks for, so that its own limit shows wherever the test runs.
        defaults = root / "etc/systemd/system.conf.d/limits.conf"
        defaults.parent.mkdir(parents=True, exist_ok=True)
        defaults.write_text("[Manager]\nDefaultLimitNOFILE=1024:4096\n")


class Node:
    """The machine's kvmd."""

    def __init__(self, machine, install):
        self.machine = machine
        self.install = install
        self.unit = (install.build / "systemd/kvmd.service").read_text()
        self.shipped = (machine.root / install.config.lstrip("/")).read_text()

    def configure(self, **values):
        text = self.shipped
        for key, value in values.items():
            key = key.replace("_", "-")
            text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
            assert count == 1, f"{key} is not in the configuration"
        (self.machine.root / self.install.config.lstrip("/")).write_text(text)

    def limit(self, memory):
        """MemoryMax= of the unit; None: none."""
        drop_in = self.machine.root / "etc/systemd/system/kvmd.service.d/limit.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(f"[Service]\nMemoryMax={memory or 'infinity'}\n")
        self.systemctl("daemon-reload")

    def systemctl(self, *arguments, check=True):
        return self.machine.run("systemctl", *arguments, check=check).stdout.strip()

    def shows(self, name):
        return self.systemctl("show", "--property", name, "--value", "kvmd.service")

    def proc(self, pid, name):
        """A file of the process's folder in /proc."""
        return self.machine.run("cat", f"/proc/{pid}/{name}", check=True).stdout

    def open_files(self, pid):
        """Soft and hard limit."""
        limits = re.search(r"^Max open files +(\d+) +(\d+)", self.proc(pid, "limits"), re.M)
        return int(limits[1]), int(limits[2])

    def may_raise_limits(self):
        """Whether the machine's systemd may go beyond its own hard limits."""
        return bool(int(re.search(r"^CapEff:\s+(\w+)", self.proc("1", "status"), re.M)[1], 16) >> CAP_SYS_RESOURCE & 1)

    def log(self):
        return self.machine.run("journalctl", "--unit", "kvmd", "--output", "cat", "--no-pager", check=True).stdout

    def restart(self):
        """Starts kvmd anew; True: it is ready."""
        self.systemctl("reset-failed", "kvmd.service", check=False)
        return self.machine.run("systemctl", "restart", "kvmd.service").returncode == 0

    def refuses_to_start(self, *reasons):
        before = len(self.log())
        assert not self.restart(), "kvmd started"
        said = eventually("the reason", lambda: "start_failed" in self.log()[before:] and self.log()[before:])
        for reason in reasons:
            assert reason in said, f"{reason!r} is not among the reasons:\n{said}"
        self.systemctl("stop", "kvmd.service", "kvmd.socket", check=False)
        self.systemctl("reset-failed", "kvmd.service", check=False)
        self.systemctl("start", "kvmd.socket")

    def kvctl(self, *arguments, user=None, check=True):
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        return self.machine.run(*become, self.install.kvctl, *arguments, check=check)

    def regions(self):
        """{name: state} of root's domain."""
        return self.machine.regions(self.install.kvctl)

    def worker(self, name, mib):
        """A worker with a pool of so many MiB, two blocks of it published."""
        process = subprocess.Popen(
            self.machine.command("/usr/local/bin/worker", "--child", "pod-worker", SOCKET, name, str(mib)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        answer = process.stdout.readline().strip()
        assert answer == "ok", f"worker {name}: {answer}"
        return process


def check_start(node):
    print("it is ready as systemd starts it, and a user's client works")
    node.systemctl("enable", "--now", "kvmd.socket", "kvmd.service")
    assert node.systemctl("is-active", "kvmd.service") == "active"
    assert "event=listening" in node.log()
    assert node.kvctl("status").returncode == 0
    assert node.kvctl("status", user=2001).returncode == 0
    assert json.loads(node.kvctl("doctor", "--json").stdout)["healthy"]


def check_hardening(node):
    print("kvmd runs without privileges, and with the descriptors that its unit gives it")
    pid = node.shows("MainPID")
    fields = dict(line.split(":", 1) for line in node.proc(pid, "status").splitlines())
    status = {name: value.split() for name, value in fields.items()}
    assert "0" not in status["Uid"], status["Uid"]
    assert [int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")] == [0, 0, 0, 0], status
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"]), status
    wanted = int(re.search(r"^LimitNOFILE=(\d+)", node.unit, re.M)[1])
    most = wanted if node.may_raise_limits() else min(wanted, node.open_files("1")[1])
    assert node.open_files(pid) == (most, most)
    root = next(line.split() for line in node.proc(pid, "mounts").splitlines() if line.split()[1] == "/")
    assert "ro" in root[3].split(","), root
    sees = node.machine.run("nsenter", "--mount", f"--target={pid}", "test", "-r", "/proc/meminfo")
    assert sees.returncode == 0, "its /proc lacks what it reads of the machine's memory"


def check_restart(node):
    print("a restart keeps what systemd stores: a worker's region, and an orphan's")
    worker = node.worker("pool", 4)
    assert node.regions() == {"pool": "live"}
    assert int(node.shows("NFileDescriptorStore")) > 0
    assert node.restart()
    eventually("what systemd had stored", lambda: "event=registry_restored" in node.log())
    eventually("the worker's return", lambda: node.regions() == {"pool": "live"})
    assert int(node.shows("NFileDescriptorStore")) > 0
    inside = node.machine.run("pidof", "worker").stdout.split()
    node.machine.run("sh", "-c", "kill -9 " + " ".join(inside), check=True)
    worker.kill()
    worker.wait()
    eventually("the orphan", lambda: node.regions() == {"pool": "orphan"})
    assert node.restart()
    eventually("the orphan after a restart", lambda: node.regions() == {"pool": "orphan"})
    doctor = node.kvctl("doctor", check=False).stdout
    assert "memory of dead workers" in doctor, doctor
    # The next one of its name gets its place, and the memory is given back, by systemd as well.
    worker = node.worker("pool", 4)
    assert node.regions() == {"pool": "live"}
    worker.stdin.close()
    worker.wait()


def check_machine_limit(node):
    print("a host cache that the machine can't hold is refused, with the reason")
    node.configure(host_cache='"900T"')
    node.refuses_to_start("--host-cache: 943718400 MiB are asked for", "allows")
    node.configure()
    assert node.restart()


def check_unit_limit(node):
    """False: the machine's systemd sets no limits."""
    print("MemoryMax= is what kvmd goes by")
    node.limit("400M")
    assert node.shows("MemoryMax") == str(400 << 20)
    if not applies_limits(node):
        return False
    node.configure(host_cache='"300M"', max_domains=1)
    node.refuses_to_start("--host-cache: 300 MiB are asked for", "allows 400 MiB")
    node.configure(host_cache='"64M"', max_domains=1)
    assert node.restart()
    assert node.kvctl("status").returncode == 0
    node.limit("60M")
    node.configure()
    assert node.restart()
    before = node.shows("MainPID")
    refused = node.kvctl("status", check=False)
    assert refused.returncode != 0, refused.stdout
    assert "60 MiB of control group" in node.log()
    assert node.shows("MainPID") == before, "kvmd was killed"
    node.limit(None)
    node.configure()
    assert node.restart()
    return True


def applies_limits(node):
    """Whether systemd has written the unit's MemoryMax= anywhere."""
    unit = "system.slice/kvmd.service"
    for path in (f"/sys/fs/cgroup/{unit}/memory.max", f"/sys/fs/cgroup/memory/{unit}/memory.limit_in_bytes"):
        text = node.machine.run("cat", path)
        if text.returncode == 0 and text.stdout.strip() == str(400 << 20):
            return True
    return False


def check(node):
    """False: the limits could not be checked."""
    for command in ("ldconfig", "systemd-sysusers", "systemd-tmpfiles --create /usr/lib/tmpfiles.d/kvmd.conf"):
        node.machine.run(*command.split(), check=True)
    try:
        check_start(node)
        check_hardening(node)
        check_restart(node)
        check_machine_limit(node)
        return check_unit_limit(node)
    except BaseException:
        state = node.systemctl("status", "kvmd.service", check=False)
        print("kvmd's log:", node.log(), "its state:", state, sep="\n")
        raise


def main():
    if os.environ.get("KVM_TEST_SYSTEMD") != "1":
        skip("boots a system of its own, so it runs only where KVM_TEST_SYSTEMD=1 is set")
    parser = argparse.ArgumentParser()
    for name in ("root", "build", "worker"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    for program in ("systemd-nspawn", "mmdebstrap", "nsenter", "ldd"):
        if shutil.which(program) is None:
            skip(f"no {program} here (scripts/install_deps.sh --systemd)")
    build = arguments.build
    made = subprocess.run([str(HERE / "make_root.sh"), str(arguments.root)])
    if made.returncode != 0:
        sys.exit(made.returncode)
    install = Install(build, arguments.worker)
    with tempfile.TemporaryDirectory(dir=arguments.root.parent) as folder:
        try:
            with Machine(arguments.root, folder, install) as machine:
                limited = check(Node(machine, install))
        except CannotBootError as error:
            skip(f"systemd can't be booted in a container here: {error}")
    if not limited:
        skip("systemd can't set MemoryMax= in a container here; all else held")


if __name__ == "__main__":
    main()
