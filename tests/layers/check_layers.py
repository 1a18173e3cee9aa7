#!/usr/bin/env python3
"""Fails when a layer is crossed: proto <- cuda <- client, proto <- daemon, kvctl over public headers
and over the eviction policies, which it simulates.

    check_layers.py --source DIR            includes of every source file, tags of every test
    check_layers.py --binary FILE           a binary that must not need CUDA at run time
    check_layers.py --self-test             that each rule can fail

Prints one line per violation and exits 1 if there are any.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
SUFFIXES = {".h", ".hpp", ".cc", ".cpp", ".cu", ".cuh"}
CUDA_HEADER = re.compile(r"^(cuda(\.h|[A-Z_]\w*\.h|_runtime.*|/.*)|cudart.*|nvml\.h|nccl.*|cooperative_groups.*|driver_types\.h|cub/.*|thrust/.*)$")
CUDA_LIBRARY = re.compile(r"libcuda|libcudart|libnvidia|libnvml")
TEST_CASE = re.compile(r'TEST_CASE\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+),\s*"([^"]*)"', re.DOTALL)
GPU_GATE = re.compile(r"\s*(KVM_NEED_GPUS\(|if \([^{}]*?\) KVM_SKIP\()")
LABELS = ("unit", "integration", "fault", "gpu")

# Folder (the longest that matches a file), and the folders its quoted includes may come from.
# kvm/ is proto/include/kvm, kvclient/ is client/include/kvclient.
RULES = [
    ("proto/include", {"kvm"}),
    ("proto", {"proto", "kvm"}),
    ("cuda", {"cuda", "proto", "kvm"}),
    ("daemon/policy", {"daemon/policy", "proto", "kvm"}),
    ("daemon", {"daemon", "daemon/policy", "proto", "kvm"}),
    ("client/include", {"kvclient", "kvm"}),
    ("client/kvctl", {"client/kvctl", "daemon/policy", "kvclient", "proto", "kvm"}),
    ("client/python", {"client/python", "kvclient", "kvm"}),
    ("client", {"client", "kvclient", "cuda", "proto", "kvm"}),
]
OURS = ("proto", "cuda", "daemon", "client", "tests", "kvm", "kvclient")
CUDA_FOLDERS = ("cuda/", "tests/gpu/")


def folder_of(include):
    """Which of our folders an include comes from; None if it is not ours."""
    for longest in ("client/kvctl", "client/python", "daemon/policy"):
        if include.startswith(longest + "/"):
            return longest
    top = include.split("/", 1)[0]
    return top if "/" in include and top in OURS else None


def source_files(root):
    for top in ("proto", "cuda", "daemon", "client", "tests"):
        if (root / top).is_dir():
            yield from sorted(p for p in (root / top).rglob("*") if p.suffix in SUFFIXES)


def check_includes(root):
    for path in source_files(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        allowed = next((folders for folder, folders in RULES if name.startswith(folder + "/")), None)
        for quote, include in INCLUDE.findall(text):
            cuda_toolkit = CUDA_HEADER.match(include) and (quote == "<" or folder_of(include) is None)
            if cuda_toolkit and not name.startswith(CUDA_FOLDERS):
                yield f"{name}: includes {include}; only cuda/ includes CUDA headers"
            if allowed is None:
                continue
            if ".." in include.split("/"):
                yield f"{name}: includes {include}; write the path from the root of the tree"
                continue
            folder = folder_of(include)
            if folder is None and quote == '"':
                yield f"{name}: includes \"{include}\"; write the path from the root of the tree"
            elif folder is not None and folder not in allowed:
                yield f"{name}: includes {include}; may include {', '.join(sorted(allowed))} only"


def check_tags(root):
    for label in LABELS:
        for path in sorted((root / "tests" / label).glob("*.cc")):
            for sentence, tags in TEST_CASE.findall(path.read_text(encoding="utf-8")):
                found = [each for each in LABELS if f"[{each}]" in tags]
                if found != [label]:
                    yield f"{path.relative_to(root)}: test {sentence.strip()} is tagged {tags or 'nothing'}, its folder says [{label}]"


def check_gpu_tests(root):
    """Every test that uses a GPU says first how many it needs, or it fails on a machine without one."""
    for path in sorted((root / "tests" / "gpu").glob("*.cc")):
        for body in re.split(r"^TEST_CASE\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            sentence, _, statements = body.partition("{")
            if not GPU_GATE.match(statements):
                sentence = sentence.rpartition(",")[0].strip()
                yield f"{path.relative_to(root)}: test {sentence} does not begin with KVM_NEED_GPUS"


def check_binary(path):
    listing = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        if "NEEDED" in line and CUDA_LIBRARY.search(line):
            yield f"{path}: needs {line.split('[')[-1].rstrip(']')} at run time"


SELF_TEST = {
    "proto/a.h": ('#include "cuda/b.h"', "proto/a.h: includes cuda/b.h"),
    "proto/c.h": ("#include <client/b.h>", "proto/c.h: includes client/b.h"),
    "proto/include/kvm/d.h": ('#include "proto/frame.h"', "d.h: includes proto/frame.h"),
    "cuda/e.cc": ('#include "daemon/b.h"', "cuda/e.cc: includes daemon/b.h"),
    "daemon/f.cc": ('#include "cuda/b.h"', "daemon/f.cc: includes cuda/b.h"),
    "daemon/g.cc": ('#  include "kvclient/client.h"', "daemon/g.cc: includes kvclient/client.h"),
    "daemon/h.cc": ("#include <cuda_runtime_api.h>", "daemon/h.cc: includes cuda_runtime_api.h"),
    "daemon/policy/h2.cc": ('#include "daemon/domain.h"', "daemon/policy/h2.cc: includes daemon/domain.h"),
    "client/i.cc": ('#include "daemon/b.h"', "client/i.cc: includes daemon/b.h"),
    "client/i2.cc": ('#include "client/kvctl/b.h"', "client/i2.cc: includes client/kvctl/b.h"),
    "client/i3.cc": ('#include "daemon/policy/lru.h"', "client/i3.cc: includes daemon/policy/lru.h"),
    "client/include/kvclient/j.h": ('#include "cuda/b.h"', "j.h: includes cuda/b.h"),
    "client/kvctl/k.cc": ('#include "client/link.h"', "k.cc: includes client/link.h"),
    "client/kvctl/l.cc": ('#include "../link.h"', "l.cc: includes ../link.h"),
    "client/kvctl/l2.cc": ('#include "daemon/eviction.h"', "l2.cc: includes daemon/eviction.h"),
    "client/m.cc": ('#include "link.h"', "m.cc: includes \"link.h\""),
    "client/n.cc": ("#include <cuda.h>", "n.cc: includes cuda.h"),
    "tests/unit/o.cc": ('TEST_CASE("a, b",\n "[fault]")', 'o.cc: test "a, b" is tagged [fault]'),
    "tests/gpu/q.cc": ('TEST_CASE("d", "[gpu]") {\n  const auto backend = BackendOf(0);\n  KVM_NEED_GPUS(1);\n}', 'q.cc: test "d" does not begin'),
    "tests/unit/p.cc": ('TEST_CASE("c", "")', "p.cc: test \"c\" is tagged nothing"),
    "cuda/good.cc": ('#include <cuda_runtime.h>\n#include "cuda/b.h"\n#include "kvm/error.h"\n#include <cudaTypedefs.h>', None),
    "daemon/policy/good.cc": ('#include "daemon/policy/a.h"\n#include "proto/b.h"', None),
    "daemon/good.cc": ('#include "daemon/a.h"\n#include "daemon/policy/a.h"\n#include "proto/b.h"\n#include <boost/asio.hpp>', None),
    "client/kvctl/good.cc": ('#include "client/kvctl/a.h"\n#include "daemon/policy/a.h"\n#include "kvclient/client.h"', None),
    "tests/gpu/good.cc": ('TEST_CASE("a", "[gpu]") {\n  KVM_NEED_GPUS(1);\n}\nTEST_CASE("b", "[gpu]") {\n  if (Missing()) KVM_SKIP("none");\n}', None),
    "tests/unit/good.cc": ('#include "daemon/a.h"\nTEST_CASE("a", "[unit]")', None),
}


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, (text, _) in SELF_TEST.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        found = list(check_includes(root)) + list(check_tags(root)) + list(check_gpu_tests(root))
    for name, (_, expected) in SELF_TEST.items():
        if expected is not None and not any(expected in line for line in found):
            yield f"self-test: {name} was not reported"
        if expected is None and any(line.startswith(name) for line in found):
            yield f"self-test: {name} was reported"
    if len(found) != sum(expected is not None for _, expected in SELF_TEST.values()):
        yield "self-test: reported " + "; ".join(found)


def main():
    parser = argparse.ArgumentParser(description="Fails when a layer is crossed.")
    parser.add_argument("--source", type=pathlib.Path, help="root of the tree")
    parser.add_argument("--binary", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    violations = []
    if arguments.self_test:
        violations += self_test()
    if arguments.source is not None:
        violations += check_includes(arguments.source)
        violations += check_tags(arguments.source)
        violations += check_gpu_tests(arguments.source)
    for binary in arguments.binary:
        violations += check_binary(binary)
    for line in violations:
        print(line, file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
