#!/usr/bin/env python3
"""The Debian packages in a clean machine with systemd, from their installation to their purge.

    deb.py --root ROOT --packages DIR

Install, first hit, metrics, upgrade with a live worker, remove, purge. ROOT is what tests/systemd/make_root.sh makes,
and is made if it isn't there; DIR has what scripts/package.sh makes.
Exit code 77: it can't run here; the reason is said.
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "systemd"))
from machine import CannotBootError, Machine, eventually  # noqa: E402

SOCKET = "/run/kvmd/kvmd.sock"
PACKAGES = "/root/packages"
NEXT_VERSION = "99.0"
MESH_STATE = "/var/lib/kvmd-mesh"


def skip(why):
    print(f"SKIPPED: {why}")
    sys.exit(77)


def run(*arguments, **options):
    """Run to the end; a failure ends the test, with what the command said."""
    done = subprocess.run([str(each) for each in arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def proxy():
    """The environment in which a root's apt reaches what this machine's apt reaches."""
    shown = subprocess.run(
        ["apt-config", "shell", "proxy", "Acquire::http::Proxy"], capture_output=True, text=True
    ).stdout
    found = re.search(r"proxy='(.*)'", shown)
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", **({"http_proxy": found[1]} if found else {})}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def build_worker(packages, folder):
    """Compile worker.cc with what the development package has, and nothing of this tree."""
    for package in packages:
        run("dpkg-deb", "-x", package, folder / "installed")
    pc = next((folder / "installed").rglob("kvclient.pc"))
    environment = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent), "PKG_CONFIG_SYSROOT_DIR": str(folder / "installed")}
    flags = run("pkg-config", "--cflags", "--libs", "kvclient", env=environment).split()
    run("c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", HERE / "worker.cc", *flags, "-o", folder / "worker")
    return folder / "worker"


def next_version(packages, folder):
    """The same packages as a later version, as an upgrade has them."""
    folder.mkdir()
    for package in packages:
        unpacked = folder / "unpacked"
        run("dpkg-deb", "-R", package, unpacked)
        control = unpacked / "DEBIAN/control"
        old = re.search(r"^Version: (\S+)$", control.read_text(), re.M)[1]
        control.write_text(control.read_text().replace(old, NEXT_VERSION))
        run("dpkg-deb", "--root-owner-group", "-b", unpacked, folder / package.name.replace(old, NEXT_VERSION))
        shutil.rmtree(unpacked)


class Copied:
    """Puts the packages into the machine's root, where its own apt will find them."""

    def __init__(self, packages, worker, upgrade):
        self.packages, self.worker, self.upgrade = packages, worker, upgrade

    def __call__(self, root):
        # The root leaves out manuals and documents of all packages; the test asks for ours.
        for settings in (root / "etc/dpkg/dpkg.cfg.d").iterdir():
            settings.write_text(
                "".join(line for line in settings.read_text().splitlines(True) if "path-exclude" not in line)
            )
        folder = root / PACKAGES.lstrip("/")
        (folder / "next").mkdir(parents=True)
        for package in self.packages:
            shutil.copy(package, folder)
        for package in self.upgrade.glob("*.deb"):
            shutil.copy(package, folder / "next")
        shutil.copy(self.worker, root / "usr/local/bin/worker")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")


class OverUnixSocket(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("kvmd", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def scrape(connection):
    """{series: value} that an exporter says."""
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.status == 200, response.status
    lines = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {series: float(value) for series, value in lines}


class Service:
    """kvmd in the machine, as its package installed it."""

    def __init__(self, machine):
        self.machine = machine

    def run(self, *arguments, check=True):
        done = self.machine.run(*arguments)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def pid(self, unit="kvmd.service"):
        return self.run("systemctl", "show", "--property", "MainPID", "--value", unit)

    def is_active(self, unit):
        return self.run("systemctl", "is-active", unit, check=False) == "active"


def ask(worker):
    """(blocks that a find has, blocks that an import copied as they were published)."""
    worker.stdin.write("\n")
    worker.stdin.flush()
    return tuple(int(each) for each in worker.stdout.readline().split())


def check_dependencies(packages):
    print("packages depend on the libraries that their programs are linked with; UCX is only suggested")
    fields = {path.name.split("_")[0]: run("dpkg-deb", "-f", path, "Depends", "Suggests") for path in packages}
    depends, suggests = (
        re.search(rf"^{name}: (.*)$", fields["kvmd-mesh"], re.M)[1] for name in ("Depends", "Suggests")
    )
    assert "libucx0" in suggests, fields
    assert "libucx" not in depends, fields
    assert "liburing2" in depends, fields
    assert "libxxhash0" in depends, fields
    for each in fields.values():
        assert "libhiredis" not in each, fields


def check_install(machine):
    """Installs as an operator does, and returns the worker that had the first hit."""
    # The development package asks for Boost's headers, 200 MB that nothing here reads.
    names = [
        f"{PACKAGES}/{path.name}"
        for path in sorted(machine.root.glob(f"{PACKAGES[1:]}/*.deb"))
        if "-dev_" not in path.name
    ]
    apt = machine.command("apt-get", "-qq", "-o", "Dpkg::Use-Pty=0")
    run(*apt, "update", env=proxy(), timeout=300)
    begin = time.monotonic()
    run(*apt, "-y", "--no-install-recommends", "install", *names, env=proxy(), timeout=300)
    worker = subprocess.Popen(
        machine.command("/usr/local/bin/worker", SOCKET), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline().strip() == "ok"
    assert ask(worker) == (8, 8)
    print(f"from the installation's start to the first hit: {time.monotonic() - begin:.1f} s")
    return worker


def check_installed(service):
    print("kvmd runs once it is installed, under its own user, and will after the machine's start")
    assert service.is_active("kvmd.service")
    assert service.is_active("kvmd.socket")
    for unit in ("kvmd.service", "kvmd.socket", "kvmd-exporter.socket"):
        assert service.run("systemctl", "is-enabled", unit) == "enabled"
    assert service.run("stat", "-c", "%U", f"/proc/{service.pid()}") == "kvmd"
    assert json.loads(service.run("kvctl", "doctor", "--json"))["healthy"]
    assert service.run("stat", "-c", "%U", "/run/kvmd") == "kvmd"


def check_documents(service):
    print("each program has a manual page, and what a shell completes of it is installed")
    for path in (
        "man/man8/kvmd.8.gz",
        "man/man8/kvmd-mesh.8.gz",
        "man/man1/kvctl.1.gz",
        "man/man1/kvctl-doctor.1.gz",
        "doc/kvmd-mesh/examples/kvmd-mesh.toml",
    ):
        service.run("test", "-s", f"/usr/share/{path}")
    for program in ("kvctl", "kvmd-mesh"):
        for path in (
            f"bash-completion/completions/{program}",
            f"zsh/vendor-completions/_{program}",
            f"fish/vendor_completions.d/{program}.fish",
        ):
            service.run("test", "-s", f"/usr/share/{path}")


def check_mesh(service):
    print("an instance of kvmd-mesh runs once it is configured, with a disk cache, and without UCX where there is none")
    assert service.run("systemctl", "list-units", "--no-legend", "kvmd-mesh@*") == ""
    example = (service.machine.root / "usr/share/doc/kvmd-mesh/examples/kvmd-mesh.toml").read_text()
    more = f'transfer = "ucx"\ndisk-path = "{MESH_STATE}/0"\ndisk-bytes = "64M"\n'
    settings = service.machine.root / "etc/kvmd/mesh-0.toml"
    settings.write_text(re.sub(r"^peers.*", "", example, flags=re.M) + more)
    service.run("systemctl", "start", "kvmd-mesh@0.service")
    eventually("kvmd-mesh's connection", lambda: "kvmd-mesh" in service.run("kvctl", "clients"))
    said = service.run("journalctl", "--no-pager", "-u", "kvmd-mesh@0.service")
    assert "event=ucx_not_started" in said, said
    assert "libucp.so.0" in said, said
    mesh_status = ("kvctl", "mesh", "status", "--json")
    eventually("its disk cache", lambda: json.loads(service.run(*mesh_status))["disk"]["state"] == "on")
    print(f"its disk cache reads and writes by {json.loads(service.run(*mesh_status))['disk']['io']}")
    assert service.run("stat", "-c", "%a", MESH_STATE + "/0") == "700"


def check_metrics(service, machine):
    print("the first scrape starts the exporter, in its sandbox, over both kinds of sockets")
    assert not service.is_active("kvmd-exporter.service")
    assert service.run("stat", "-c", "%U %G %a", "/run/kvmd/exporter.sock") == "kvmd kvmd 660"
    by_path = f"/proc/{machine.leader}/root/run/kvmd/exporter.sock"
    found = scrape(OverUnixSocket(by_path))
    assert found["kvmd_up"] == 1
    lookups = 'kvmd_lookup_keys_total{domain="uid-0",result="found"}'
    eventually("the worker's report", lambda: scrape(OverUnixSocket(by_path)).get(lookups) == 8)
    assert not [series for series in found if "uid-0" not in series and "domain=" in series], (
        "a domain was made for the exporter"
    )
    assert service.is_active("kvmd-exporter.service")
    port = free_port()
    drop_in = "/etc/systemd/system/kvmd-exporter.socket.d"
    service.run("mkdir", drop_in)
    service.run("sh", "-c", f"printf '[Socket]\\nListenStream=127.0.0.1:{port}\\n' >{drop_in}/tcp.conf")
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "stop", "kvmd-exporter.service")
    service.run("systemctl", "restart", "kvmd-exporter.socket")
    assert scrape(http.client.HTTPConnection("127.0.0.1", port, timeout=20))["kvmd_up"] == 1
    assert scrape(OverUnixSocket(by_path))["kvmd_up"] == 1
    service.run("rm", "-r", drop_in)


def check_mesh_metrics(service, machine):
    print("the exporter asks each kvmd-mesh that runs, sees one that fails, and starts none that was stopped")
    by_path = f"/proc/{machine.leader}/root/run/kvmd/exporter.sock"
    unit, passed = "kvmd-mesh@0.service", "/run/kvmd-mesh-status/0.sock"

    def up():
        return scrape(OverUnixSocket(by_path)).get(f'kvmd_mesh_up{{socket="{passed}"}}')

    assert service.run("stat", "-c", "%U %G %a", passed) == "root kvmd 660"
    assert service.run("stat", "-c", "%a", "/run/kvmd-mesh/0/mesh.sock") == "600"
    assert up() == 1
    found = scrape(OverUnixSocket(by_path))
    assert [value for series, value in found.items() if series.startswith("kvmd_mesh_disk_on{")] == [1], found
    service.run("systemctl", "stop", unit)
    service.run("test", "!", "-e", passed)
    assert up() is None
    assert not service.is_active(unit)
    assert not service.is_active("kvmd-mesh@0.socket")
    # It fails at each start, without an end.
    settings = service.machine.root / "etc/kvmd/mesh-0.toml"
    good = settings.read_text()
    settings.write_text(good.replace('node = "a"', 'node = "a b"'))
    service.run("systemctl", "start", unit, check=False)
    starts = ("systemctl", "show", "--property", "NRestarts", "--value", unit)
    eventually("more starts than systemd allows by default", lambda: int(service.run(*starts)) > 6)
    # The socket is made anew at each start.
    eventually("a metric of its failure", lambda: up() == 0)
    settings.write_text(good)
    eventually("kvmd-mesh's return", lambda: up() == 1)


def check_upgrade(service, machine, worker):
    print("an upgrade restarts kvmd and the exporter, and a live worker loses nothing")
    assert ask(worker) == (8, 8)
    service.run("sed", "-i", "s/^max-models = .*/max-models = 65/", "/etc/kvmd/kvmd.toml")
    before, exporter = service.pid(), service.pid("kvmd-exporter.service")
    following = machine.root / PACKAGES.lstrip("/") / "next"
    names = [f"{PACKAGES}/next/{path.name}" for path in following.iterdir() if "-dev_" not in path.name]
    service.run("dpkg", "-i", *names)
    assert NEXT_VERSION in service.run("dpkg-query", "-W", "kvmd")
    assert service.pid() not in (before, "0")
    assert service.pid("kvmd-exporter.service") not in (exporter, "0")
    by_path = f"/proc/{machine.leader}/root/run/kvmd/exporter.sock"
    mesh_up = 'kvmd_mesh_up{socket="/run/kvmd-mesh-status/0.sock"}'
    eventually("kvmd-mesh's answer", lambda: scrape(OverUnixSocket(by_path)).get(mesh_up) == 1)
    assert service.run("grep", "^max-models =", "/etc/kvmd/kvmd.toml") == "max-models = 65", (
        "the configuration was replaced"
    )
    eventually("the worker's return", lambda: machine.regions("kvctl") == {"pool": "live", "copies": "live"})
    assert ask(worker) == (8, 8)
    worker.stdin.close()
    assert worker.wait(20) == 0


def check_journal(service):
    print("the journal has of that restart what OPERATIONS shows of one")
    page = (HERE.parents[1] / "docs/OPERATIONS.md").read_text()
    shown = re.search(r"^```journal\n(.*?)^```$", page, re.M | re.S)[1].splitlines()

    def forms(lines):
        """The lines' words without what stands in front of kvmd's name; numbers stand for any other."""
        return [re.sub(r"\d+", "#", line[line.index("kvmd[") :]) for line in lines if "kvmd[" in line]

    said = service.run("journalctl", "-u", "kvmd", "--since", "-1h", "--until", "now").splitlines()
    missing = set(forms(shown)) - set(forms(said))
    assert forms(shown), shown
    assert not missing, (missing, said)


def check_removal(service):
    print("removed, nothing runs and the configuration stays; purged, nothing is left but the user")
    service.run("dpkg", "-r", "kvmd-mesh", "kvmd")
    for unit in (
        "kvmd.service",
        "kvmd.socket",
        "kvmd-exporter.service",
        "kvmd-exporter.socket",
        "kvmd-mesh@0.service",
        "kvmd-mesh@0.socket",
    ):
        assert not service.is_active(unit), unit
    service.run("rm", "/etc/kvmd/mesh-0.toml")
    service.run("test", "-e", "/etc/kvmd/kvmd.toml")
    service.run("test", "-e", MESH_STATE + "/0")
    installed = service.run("dpkg-query", "-W", "-f", "${Package}\n").split()
    service.run("dpkg", "-P", "kvmd-mesh", "kvmd", *[name for name in installed if name.startswith("libkvclient")])
    names = ["-name", "*kvmd*", "-o", "-name", "*kvclient*", "-o", "-name", "*kvctl*"]
    found = service.run("find", "/", "-xdev", "(", *names, ")").split()
    left = [path for path in found if not path.startswith((PACKAGES, "/var/log/", "/proc/", "/sys/"))]
    assert not left, left
    assert service.run("systemctl", "list-unit-files", "--no-legend", "kvmd*", check=False) == ""


def main():
    parser = argparse.ArgumentParser()
    for name in ("root", "packages"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if os.environ.get("KVM_TEST_SYSTEMD") != "1":
        skip("boots a system of its own, so it runs only where KVM_TEST_SYSTEMD=1 is set")
    for program in ("systemd-nspawn", "mmdebstrap", "nsenter", "dpkg-deb", "pkg-config"):
        if shutil.which(program) is None:
            skip(f"no {program} here (scripts/install_deps.sh --systemd --package)")
    made = subprocess.run([str(HERE.parent / "systemd/make_root.sh"), str(arguments.root)])
    if made.returncode != 0:
        sys.exit(made.returncode)
    packages = sorted(arguments.packages.glob("*.deb"))
    assert len(packages) == 4, f"{arguments.packages} has {packages}, not the four that scripts/package.sh makes"
    with tempfile.TemporaryDirectory(dir=arguments.root.parent) as name:
        folder = pathlib.Path(name)
        check_dependencies(packages)
        worker = build_worker(packages, folder)
        next_version(packages, folder / "next")
        try:
            with Machine(arguments.root, folder, Copied(packages, worker, folder / "next")) as machine:
                service = Service(machine)
                user = check_install(machine)
                check_installed(service)
                check_documents(service)
                check_mesh(service)
                check_metrics(service, machine)
                check_mesh_metrics(service, machine)
                check_upgrade(service, machine, user)
                check_journal(service)
                check_removal(service)
        except CannotBootError as error:
            skip(f"systemd can't be booted in a container here: {error}")


if __name__ == "__main__":
    main()
