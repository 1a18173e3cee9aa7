#!/usr/bin/env python3
"""The Python wheel on a machine without a compiler: what is in it, what it needs and shows, and a first hit.

    wheel.py --wheels DIR --python PYTHON…        DIR has what scripts/wheel.sh makes

Each PYTHON makes a bare virtual environment, in which the wheel is installed. Exit code 77: it can't run here; the
reason is said.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

# What every machine with the wheel's C library has.
SYSTEM_LIBRARIES = re.compile(r"(libc|libm|libdl|librt|libpthread|libgcc_s)\.so\.\d+|ld-linux-.*\.so\.\d+")
EXPORTED = {"PyInit__native", "kvm_torch_allocate", "kvm_torch_free"}

FIRST_HIT = """
import subprocess, sys, kvclient
socket, role = sys.argv[1:]
client = kvclient.Client(socket, name=role)
spec = kvclient.ModelSpec(model_id="test/wheel", revision="1", kv_dtype="bfloat16", layout="NHD", num_layers=1,
                          num_kv_heads=1, head_size=8, block_tokens=4)
model = client.declare_model(spec)
region = client.allocate_region(model, kvclient.Geometry.contiguous(8, 4096), name=role)
chain = kvclient.KeyChain(model)
root, keys = chain.parent, chain.extend(list(range(16)))
if role == "owner":
    writes = region.begin_writes([0, 1, 2, 3])
    for block in range(4):
        region.block(block)[:] = block + 1
    region.publish_run(keys, root, 0, writes)
    region.flush(5.0)
    print("published", flush=True)
    sys.stdin.readline()
else:
    match = client.find(keys)
    result = client.import_blocks(match, region, [4, 5, 6, 7]).wait()
    right = all(bytes(region.block(4 + i)) == bytes([i + 1]) * 4096 for i in range(4))
    print(len(match), result.valid, right, flush=True)
"""


def run(*arguments, **options):
    done = subprocess.run([str(each) for each in arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def check_contents(wheel, folder):
    print(f"{wheel.name}, {wheel.stat().st_size / 2**20:.1f} MiB: needs the C library alone, and shows three functions")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        for info in archive.infolist():
            os.chmod(folder / info.filename, 0o755)
    extension = next((folder / "kvclient").glob("_native*.so"))
    # Under another name, later Pythons would not look for it.
    assert extension.name == "_native.abi3.so" or "-abi3-" not in wheel.name, extension.name
    # Under a name that no other copy in the process has.
    brought = {path.name for path in (folder / "kvclient.libs").glob("*")}
    assert len(brought) == 1, brought
    assert re.fullmatch(r"libprotobuf-lite-[0-9a-f]+\.so\S*", *brought), brought
    oldest = tuple(int(each) for each in re.search(r"manylinux_(\d+)_(\d+)", wheel.name).groups())
    for binary in (extension, folder / "kvclient/bin/kvmd", folder / "kvclient/bin/kvctl"):
        dynamic = run("readelf", "--dynamic", "--wide", binary)
        foreign = {
            each for each in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) if not SYSTEM_LIBRARIES.fullmatch(each)
        }
        assert foreign == (brought if binary == extension else set()), f"{binary.name} needs {foreign}"
        versions = re.findall(r"GLIBC_(\d+)\.(\d+)", run("readelf", "--version-info", "--wide", binary))
        newest = max(tuple(int(each) for each in version) for version in versions)
        assert newest <= oldest, f"{binary.name} needs a C library of {newest}"
    print(f"programs of {run(folder / 'kvclient/bin/kvctl', '--version').strip()}")
    shown = run("nm", "--dynamic", "--defined-only", "--format=just-symbols", extension).split()
    assert set(shown) == EXPORTED, f"{extension.name} shows {set(shown) ^ EXPORTED}"
    metadata = next(folder.glob("*.dist-info/METADATA")).read_text()
    required = [each for each in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M) if "extra" not in each]
    assert len(required) == 1, required
    assert required[0].startswith("numpy"), required


def check_first_hit(python, wheel, folder):
    """Install it where there is no compiler, start its kvmd, publish in one process and import in another."""
    run(python, "-m", "venv", folder / "env")
    bin_folder = folder / "env/bin"
    # No program of the machine's, so no compiler.
    bare = {
        "PATH": str(bin_folder),
        "HOME": str(folder),
        **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
    }
    assert shutil.which("cc", path=bare["PATH"]) is None
    config = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    for name, value in re.findall(r"^global\.([\w-]+)='(.*)'$", config, re.M):
        bare.setdefault("PIP_" + name.upper().replace("-", "_"), value)
    begin = time.monotonic()
    run(
        bin_folder / "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
        "--only-binary=:all:",
        wheel,
        env=bare,
    )
    socket = folder / "kvmd.sock"
    kvmd = subprocess.Popen([bin_folder / "kvmd", "--socket", socket, "--log-level", "warn"], env=bare)
    owner = None
    try:
        deadline = time.monotonic() + 30
        while not socket.exists():
            assert kvmd.poll() is None, "kvmd has ended"
            assert time.monotonic() < deadline, "kvmd does not listen"
            time.sleep(0.02)
        worker = [bin_folder / "python", "-I", "-c", FIRST_HIT, socket]
        owner = subprocess.Popen([*worker, "owner"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=bare)
        assert owner.stdout.readline() == "published\n"
        said = run(*worker, "importer", env=bare).split()
        assert said == ["4", "4", "True"], said
        took = time.monotonic() - begin
        assert "owner" in run(bin_folder / "kvctl", "clients", "--socket", socket, env=bare)
        print(f"{python}: from the installation's start to the first hit: {took:.1f} s")
    finally:
        if owner is not None:
            owner.communicate("\n", timeout=20)
        kvmd.terminate()
        assert kvmd.wait(20) == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheels", type=pathlib.Path, required=True)
    parser.add_argument("--python", nargs="+", required=True)
    arguments = parser.parse_args()
    wheels = sorted(arguments.wheels.glob("kvclient-*.whl"))
    assert wheels, f"{arguments.wheels} has no wheel (scripts/wheel.sh)"
    for wheel in wheels:
        with tempfile.TemporaryDirectory() as name:
            check_contents(wheel, pathlib.Path(name))
    for python in arguments.python:
        version = run(python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
        fits = [
            wheel
            for wheel in wheels
            if f"-{version}-" in wheel.name or ("-abi3-" in wheel.name and int(version[2:]) >= 312)
        ]
        if not fits:
            print(f"{python}: no wheel for {version}")
            sys.exit(1)
        with tempfile.TemporaryDirectory() as name:
            check_first_hit(python, fits[0], pathlib.Path(name))


if __name__ == "__main__":
    main()
