#!/usr/bin/env python3
"""An upgrade from the version before, in a clean machine with systemd: its worker goes on, and nothing is lost.

    deb_before.py --root ROOT --packages DIR --before DIR

As deb.py. --before: what version_before.sh made. That version had no packages, so its programs, configuration and units
are put into one that is otherwise this version's.
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

import deb
from machine import CannotBootError, Machine, eventually

PROGRAMS = ("bin/kvmd", "bin/kvctl")
UNITS = ("lib/systemd/system/kvmd.service", "lib/systemd/system/kvmd.socket")
CONFIGURATION = "/etc/kvmd/kvmd.toml"
# An option of 0.1.0 that 0.2.0 has under another name.
RENAMED_OPTION = "max-held-percent"


def version_of(before):
    return re.search(r"^project\(kvmd VERSION (\S+)", (before / "CMakeLists.txt").read_text(), re.M)[1]


def needed(programs, folder):
    """The packages that programs are linked with, as a Depends field has them."""
    (folder / "debian").mkdir()
    (folder / "debian/control").write_text("Source: kvmd\n\nPackage: kvmd\nArchitecture: any\n")
    said = deb.run("dpkg-shlibdeps", "--ignore-missing-info", "-O", *programs, cwd=folder)
    return re.search(r"^shlibs:Depends=(.*)$", said, re.M)[1]


def package_before(package, before, folder):
    """The package of kvmd, with what the version before installs."""
    unpacked = folder / "unpacked"
    deb.run("dpkg-deb", "-R", package, unpacked)
    programs = [before / "installed" / path for path in PROGRAMS]
    control = unpacked / "DEBIAN/control"
    text = re.sub(r"^Version: .*", f"Version: {version_of(before)}", control.read_text(), flags=re.M)
    text = re.sub(r"^(Depends: .*)", lambda found: f"{found[1]}, {needed(programs, folder)}", text, flags=re.M)
    control.write_text(text)
    for unit in (unpacked / "usr/lib/systemd/system").glob("kvmd-exporter.*"):
        unit.unlink()
    for path in PROGRAMS:
        shutil.copy(before / "installed" / path, unpacked / "usr" / path)
    for path in UNITS:
        text = (before / "installed" / path).read_text()
        # It was configured for another prefix.
        text = text.replace("/usr/local/bin/", "/usr/bin/").replace("/usr/local/etc/", "/etc/")
        (unpacked / "usr" / path).write_text(text)
    shutil.copy(before / "systemd/kvmd.toml", unpacked / CONFIGURATION[1:])
    made = folder / f"kvmd_{version_of(before)}.deb"
    deb.run("dpkg-deb", "--root-owner-group", "-b", unpacked, made)
    shutil.rmtree(unpacked)
    return made


def build_worker_before(before, folder):
    """worker.cc with that version's headers and library."""
    installed = before / "installed"
    library = next(installed.rglob("libkvclient.so"))
    include = f"-I{installed / 'include'}"
    built = folder / "worker-before"
    deb.run("c++", "-std=c++20", include, deb.HERE / "worker.cc", library, "-Wl,-rpath,/usr/local/lib", "-o", built)
    return built, library.resolve()


class Upgraded:
    """The machine whose kvmd is replaced, and the worker of the version before that stays."""

    def __init__(self, machine, before, old_package):
        self.machine, self.service = machine, deb.Service(machine)
        self.old_version = version_of(before)
        self.old_package = f"{deb.PACKAGES}/{old_package.name}"
        found = sorted(path.name for path in machine.root.glob(f"{deb.PACKAGES[1:]}/*.deb"))
        self.new_packages = [f"{deb.PACKAGES}/{name}" for name in found if name.startswith(("kvmd_", "libkvclient0"))]
        self.new_packages.remove(self.old_package)
        self.worker = None

    def apt(self, *arguments):
        """What apt said."""
        command = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-confold", *arguments]
        done = subprocess.run(
            self.machine.command(*command),
            env=deb.proxy(),
            timeout=600,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, *packages):
        return self.apt("-y", "--no-install-recommends", "--allow-downgrades", "install", *packages)

    def version(self):
        return self.service.run("kvctl", "--version")

    def start_worker(self, program, prefix=""):
        """A worker that has published its blocks, in pools whose names begin with `prefix`."""
        command = self.machine.command(f"/usr/local/bin/{program}", deb.SOCKET, prefix)
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        said = worker.stdout.readline().strip()
        assert said == "ok", said
        assert deb.ask(worker) == (8, 8)
        return worker

    def has_everything(self):
        """The worker's return to a kvmd that was replaced, and all of its blocks."""
        wanted = {"pool": "live", "copies": "live"}
        eventually("the worker's return", lambda: self.machine.regions("kvctl") == wanted)
        assert deb.ask(self.worker) == (8, 8)

    def check_install(self):
        self.apt("update")
        self.install(self.old_package)
        assert self.old_version in self.version()
        assert self.service.is_active("kvmd.service")
        self.worker = self.start_worker("worker-before")

    def check_upgrade(self):
        pid = self.service.pid()
        self.install(*self.new_packages)
        assert self.old_version not in self.version()
        assert self.service.pid() not in (pid, "0")
        self.has_everything()
        shipped = (deb.HERE.parents[1] / "systemd/kvmd.toml").read_text().strip()
        assert self.service.run("cat", CONFIGURATION) == shipped
        for unit in ("kvmd.service", "kvmd.socket", "kvmd-exporter.socket"):
            assert self.service.run("systemctl", "is-enabled", unit) == "enabled"
        print(f"a worker of {self.old_version} goes on after an upgrade of kvmd, with all its blocks")

    def check_both(self):
        following = self.start_worker("worker", "following-")
        assert deb.ask(self.worker) == (8, 8)
        assert json.loads(self.service.run("kvctl", "doctor", "--json"))["healthy"]
        following.stdin.close()
        assert following.wait(60) == 0
        print("a worker of this version shares with it")

    def check_downgrade(self):
        pid = self.service.pid()
        self.install(self.old_package)
        assert self.old_version in self.version()
        assert self.service.pid() not in (pid, "0")
        self.has_everything()
        print("and after a downgrade")

    def check_refused_configuration(self):
        """An operator's file of the version before, with an option that this version has no more."""
        pid = self.service.pid()
        self.service.run("sed", "-i", f"s/^{RENAMED_OPTION} = .*/{RENAMED_OPTION} = 60/", CONFIGURATION)
        said = self.install(*self.new_packages)
        assert self.old_version not in self.version()
        assert self.service.pid() == pid, "kvmd was stopped for one that can't be started"
        assert re.search(rf"{CONFIGURATION}:\d+: {RENAMED_OPTION}: ", said), said
        assert deb.ask(self.worker) == (8, 8)
        self.service.run("cp", f"{CONFIGURATION}.dpkg-dist", CONFIGURATION)
        self.service.run("systemctl", "restart", "kvmd.service")
        assert self.service.pid() not in (pid, "0")
        self.has_everything()
        print("where it refuses the edited configuration, the kvmd that runs goes on until that is mended")

    def check(self):
        self.check_install()
        self.check_upgrade()
        self.check_both()
        self.check_downgrade()
        self.check_refused_configuration()
        self.worker.stdin.close()
        assert self.worker.wait(60) == 0


def main():
    parser = argparse.ArgumentParser()
    for name in ("root", "packages", "before"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if os.environ.get("KVM_TEST_SYSTEMD") != "1":
        deb.skip("boots a system of its own, so it runs only where KVM_TEST_SYSTEMD=1 is set")
    with tempfile.TemporaryDirectory(dir=arguments.root.parent) as name:
        folder = pathlib.Path(name)
        packages = sorted(arguments.packages.glob("*.deb"))
        worker = deb.build_worker(packages, folder)
        old_worker, library = build_worker_before(arguments.before, folder)
        new_package = next(path for path in packages if path.name.startswith("kvmd_"))
        old_package = package_before(new_package, arguments.before, folder)
        copied = deb.Copied(packages, worker, folder / "none")

        def install(root):
            copied(root)
            shutil.copy(old_package, root / deb.PACKAGES.lstrip("/"))
            shutil.copy(old_worker, root / "usr/local/bin")
            soname = re.search(r"SONAME.*\[(.*)\]", deb.run("readelf", "-dW", library))[1]
            shutil.copy(library, root / "usr/local/lib" / soname)

        try:
            with Machine(arguments.root, folder, install) as machine:
                Upgraded(machine, arguments.before, old_package).check()
        except CannotBootError as error:
            deb.skip(f"systemd can't be booted in a container here: {error}")


if __name__ == "__main__":
    sys.exit(main())
