#!/usr/bin/env python3
"""Fails when a layer is crossed: proto <- cuda <- client, proto <- daemon, kvctl and kvmd-mesh over public headers
and over the eviction policies, which they use; and inside a layer, when a folder includes what lies above it. Fails as
well when a class lies in more than one source file, and when a header's function that prefetches is not always inlined.

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
CUDA_HEADER = re.compile(
    r"^(cuda(\.h|[A-Z_]\w*\.h|_runtime.*|/.*)|cudart.*|nvml\.h|nccl.*|cooperative_groups.*|driver_types\.h|cub/.*|thrust/.*)$"
)
CUDA_LIBRARY = re.compile(r"libcuda|libcudart|libnvidia|libnvml")
TEST_CASE = re.compile(r'TEST_CASE\(\s*((?:"(?:[^"\\]|\\.)*"\s*)+),\s*"([^"]*)"', re.DOTALL)
NAMESPACE = re.compile(r"namespace\s*([\w:]*)\s*{")
METHOD = re.compile(r"(?:^|[\s&*])((?:\w+::)+)(?:~?\w+|operator[^:]*)$")
GPU_GATE = re.compile(r"\s*(KVM_NEED_GPUS\(|if \([^{}]*?\) KVM_SKIP\()")
LABELS = ("unit", "integration", "fault", "gpu")

# Folder (the longest that matches a file), and the folders its quoted includes may come from
# besides itself. kvm/ is proto/include/kvm and cuda/include/kvm, kvclient/ is
# client/include/kvclient. What a folder may include, it may include from the folder itself and from
# those below it that have no rule of their own.
PROTO = {"proto/base", "proto/log", "proto/model", "proto/shm", "proto/wire", "kvm"}
MESH = {"proto/base", "proto/log", "proto/mesh", "proto/shm", "proto/wire", "kvclient", "kvm"}
CLIENT = PROTO | {"cuda", "kvclient"}
KVCTL = {"proto/base", "proto/shm", "proto/wire", "kvclient", "kvm"}
CACHE = PROTO | {"daemon/host_cache", "daemon/registry", "daemon/policy", "daemon/system"}
MESH_PARTS = {
    f"client/mesh/{each}"
    for each in ("directory", "disk", "events", "log", "membership", "memory", "scan", "sources", "threads", "transfer")
}
RULES = {
    "proto/include": {"kvm"},
    "proto/base": {"kvm"},
    "proto/log": {"proto/base", "kvm"},
    "proto/model": {"proto/base", "kvm"},
    "proto/shm": {"proto/base", "kvm"},
    "proto/wire": {"proto/base", "proto/shm", "proto/model", "kvm"},
    "proto/mesh": {"proto/base", "kvm"},
    # The interface, then what needs no CUDA, then what is built on CUDA.
    "cuda": PROTO | {"cuda/include"},
    "cuda/no_cuda.cc": {"cuda", "cuda/topology", "kvm"},
    "cuda/include": {"kvm"},
    "cuda/host": PROTO | {"cuda"},
    "cuda/plan": PROTO | {"cuda"},
    "cuda/kernels": PROTO | {"cuda", "cuda/plan", "cuda/host"},
    "cuda/device": PROTO | {"cuda", "cuda/plan", "cuda/kernels"},
    "cuda/topology": PROTO | {"cuda", "cuda/device"},
    "cuda/memory": PROTO | {"cuda", "cuda/host", "cuda/device"},
    "cuda/import": PROTO
    | {"cuda", "cuda/host", "cuda/plan", "cuda/kernels", "cuda/device", "cuda/memory", "cuda/topology"},
    # server → broker → host_cache → registry → policy, system; in broker: status → services → state
    # → clients.
    "daemon/policy": PROTO,
    "daemon/system": PROTO | {"daemon/policy"},
    "daemon/registry": PROTO | {"daemon/policy", "daemon/system"},
    "daemon/host_cache": PROTO | {"daemon/registry", "daemon/policy", "daemon/system"},
    "daemon/broker/clients": CACHE,
    "daemon/broker/state": CACHE | {"daemon/broker/clients"},
    "daemon/broker/services": CACHE | {"daemon/broker/state", "daemon/broker/clients"},
    "daemon/broker/status": CACHE | {"daemon/broker/services", "daemon/broker/state", "daemon/broker/clients"},
    "daemon/broker": CACHE | {f"daemon/broker/{each}" for each in ("status", "services", "state", "clients")},
    "daemon/server": PROTO
    | {
        "daemon/broker",
        "daemon/broker/clients",
        "daemon/host_cache",
        "daemon/registry",
        "daemon/policy",
        "daemon/system",
    },
    "daemon": PROTO | {"daemon/server", "daemon/system"},  # main.cc
    "client/include": {"kvclient", "kvm"},
    "client/python": {"client/python", "kvclient", "kvm"},
    "client/examples": {"kvclient", "kvm"},
    # client → import → region → offload → find → peers → connection; leases stand beside the
    # regions.
    "client/stats": PROTO | {"kvclient"},
    "client/connection": CLIENT,
    "client/peers": CLIENT | {"client/connection"},
    "client/find": CLIENT | {"client/peers", "client/connection"},
    "client/lease": CLIENT | {"client/find", "client/peers", "client/connection"},
    "client/offload": CLIENT | {"client/find", "client/peers", "client/connection", "client/stats"},
    "client/region": CLIENT | {"client/offload", "client/peers", "client/connection", "client/stats"},
    "client/import": CLIENT
    | {"client/region", "client/offload", "client/find", "client/peers", "client/connection", "client/stats"},
    "client/join": {"client/connection", "proto/base", "proto/mesh", "kvclient", "kvm"},
    "client": CLIENT
    | {
        f"client/{each}"
        for each in ("import", "join", "region", "lease", "offload", "find", "peers", "connection", "stats")
    },
    # node → membership, scan, sources, disk → memory → threads → transfer → log; scan → events;
    # directory stands alone. In node: serving → disk, peers → state. A scan has kvctl's connection,
    # the disk cache the daemon's policies.
    "client/mesh/log": {"proto/base", "proto/log"},
    "client/mesh/directory": {"proto/base", "proto/mesh", "kvm"},
    "client/mesh/transfer": {"proto/mesh", "kvm", "client/mesh/log"},
    "client/mesh/threads": {"client/mesh/log", "client/mesh/transfer", "kvm"},
    "client/mesh/membership": {"proto/base", "proto/mesh", "kvm"}
    | {f"client/mesh/{each}" for each in ("log", "threads", "transfer")},
    "client/mesh/memory": MESH | {"client/mesh/log", "client/mesh/threads", "client/mesh/transfer"},
    "client/mesh/disk": {
        "proto/base",
        "proto/mesh",
        "client/mesh/directory",
        "client/mesh/log",
        "client/mesh/memory",
        "daemon/policy",
        "kvm",
    },
    "client/mesh/scan": {"proto/base", "proto/shm", "kvclient", "kvm", "client/kvctl/cli"}
    | {f"client/mesh/{each}" for each in ("directory", "events", "memory")},
    "client/mesh/sources": {"kvm"} | {f"client/mesh/{each}" for each in ("memory", "transfer")},
    "client/mesh/events": {"proto/base", "proto/mesh", "kvm", "client/mesh/log"},
    "client/mesh/node/state": MESH | MESH_PARTS | {"client/kvctl/cli", "daemon/policy"},
    "client/mesh/node/disk": MESH | MESH_PARTS | {"client/mesh/node/state"},
    "client/mesh/node/peers": MESH | MESH_PARTS | {"client/mesh/node/state"},
    "client/mesh/node/serving": MESH | MESH_PARTS | {f"client/mesh/node/{each}" for each in ("disk", "peers", "state")},
    "client/mesh/node": MESH
    | MESH_PARTS
    | {f"client/mesh/node/{each}" for each in ("serving", "disk", "peers", "state")},
    # main.cc
    "client/mesh": MESH | {"client/mesh/node", "client/mesh/node/state", "client/mesh/log"},
    # doctor, exporter → mesh → views; live, support, replay, simulate, bench → workload, process;
    # all → cli.
    "client/kvctl/cli": KVCTL,
    "client/kvctl/process": KVCTL | {"client/kvctl/cli"},
    "client/kvctl/workload": KVCTL | {"client/kvctl/cli", "daemon/policy"},
    "client/kvctl/views": KVCTL | {"client/kvctl/cli"},
    "client/kvctl/doctor": KVCTL | {"client/kvctl/cli", "client/kvctl/mesh", "proto/mesh"},
    "client/kvctl/mesh": KVCTL | {"client/kvctl/cli", "client/kvctl/views", "proto/mesh"},
    "client/kvctl/support": KVCTL | {"client/kvctl/cli", "client/kvctl/process"},
    "client/kvctl/page": KVCTL | {"client/kvctl/cli"},
    "client/kvctl/exporter": KVCTL | {"client/kvctl/cli", "client/kvctl/mesh", "client/kvctl/page", "proto/mesh"},
    "client/kvctl/live": KVCTL | {"client/kvctl/cli", "client/kvctl/process"},
    "client/kvctl/replay": KVCTL
    | {"client/kvctl/cli", "client/kvctl/process", "client/kvctl/workload", "daemon/policy"},
    "client/kvctl/simulate": KVCTL | {"client/kvctl/cli", "client/kvctl/workload", "daemon/policy"},
    "client/kvctl/bench": KVCTL | {"client/kvctl/cli", "client/kvctl/process", "client/kvctl/workload"},
    "client/kvctl": KVCTL
    | {
        f"client/kvctl/{each}"
        for each in ("cli", "process", "views", "doctor", "exporter", "live", "replay", "simulate", "support", "bench")
    },
    # The tests' precompiled header; the file says why.
    "tests/outside_headers.h": set(),
}
FILE_RULES = ("cuda/no_cuda.cc", "tests/outside_headers.h")
OURS = ("proto", "cuda", "daemon", "client", "tests", "kvm", "kvclient")
CUDA_FOLDERS = ("cuda/", "tests/gpu/", "tests/bench/")


def rule_of(path):
    """The longest key of RULES that is the path or a folder above it; None if there is none."""
    return max((key for key in RULES if path == key or path.startswith(key + "/")), key=len, default=None)


def folder_of(include):
    """Which of our folders an include comes from; None if it is not ours."""
    top = include.split("/", 1)[0]
    if "/" not in include or top not in OURS:
        return None
    # A layer as a whole is named by its own folder: client/b.h is of "client".
    return rule_of(include) or top


def source_files(root):
    for top in ("proto", "cuda", "daemon", "client", "tests"):
        if (root / top).is_dir():
            yield from sorted(p for p in (root / top).rglob("*") if p.suffix in SUFFIXES)


def check_includes(root):
    for path in source_files(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8", errors="replace")
        rule = rule_of(name)
        allowed = None if rule is None else RULES[rule] | {rule}
        for quote, include in INCLUDE.findall(text):
            cuda_toolkit = CUDA_HEADER.match(include) and (quote == "<" or folder_of(include) is None)
            if cuda_toolkit and not name.startswith(CUDA_FOLDERS):
                yield f"{name}: includes {include}; only cuda/ includes CUDA headers"
            if allowed is None:
                if not name.startswith("tests/"):
                    yield f"{name}: lies in a folder that has no rule"
                continue
            if ".." in include.split("/"):
                yield f"{name}: includes {include}; write the path from the root of the tree"
                continue
            folder = folder_of(include)
            if folder is None and quote == '"':
                yield f'{name}: includes "{include}"; write the path from the root of the tree'
            elif folder is not None and folder not in allowed:
                yield f"{name}: includes {include}; may include {', '.join(sorted(allowed))} only"


def check_tags(root):
    for label in LABELS:
        for path in sorted((root / "tests" / label).rglob("*.cc")):
            for sentence, tags in TEST_CASE.findall(path.read_text(encoding="utf-8")):
                found = [each for each in LABELS if f"[{each}]" in tags]
                if found != [label]:
                    test = f"{path.relative_to(root)}: test {sentence.strip()}"
                    yield f"{test} is tagged {tags or 'nothing'}, its folder says [{label}]"
                if ";" in sentence:
                    yield f"{path.relative_to(root)}: test {sentence.strip()} has a semicolon, where CMake cuts it in two"


def check_gpu_tests(root):
    """Every test that uses a GPU says first how many it needs, or it fails on a machine without one."""
    for path in sorted((root / "tests" / "gpu").rglob("*.cc")):
        for body in re.split(r"^TEST_CASE\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            sentence, _, statements = body.partition("{")
            if not GPU_GATE.match(statements):
                sentence = sentence.rpartition(",")[0].strip()
                yield f"{path.relative_to(root)}: test {sentence} does not begin with KVM_NEED_GPUS"


def classes_of(text):
    """The classes, with their namespaces, that have a method defined in this text of a source file. Not those of an
    unnamed namespace, which no other file can see.
    """
    spaces = []
    for line in text.splitlines():
        if opened := NAMESPACE.match(line):
            spaces.append(opened.group(1))
        elif line.startswith("}  // namespace"):
            spaces.pop()
        elif (
            line[:1].isalpha() and "(" in line and "" not in spaces and (method := METHOD.search(line.split("(", 1)[0]))
        ):
            yield "::".join([*spaces, method.group(1)[:-2]])


def check_classes(root):
    where = {}
    for path in source_files(root):
        if path.suffix != ".cc" or path.is_relative_to(root / "tests"):
            continue
        name = path.relative_to(root).as_posix()
        for found in set(classes_of(path.read_text(encoding="utf-8", errors="replace"))):
            # Client and daemon share a namespace, and no program has both.
            where.setdefault((name.split("/", 1)[0], found), []).append(name)
    for (_, found), names in where.items():
        if len(names) > 1:
            yield (
                f"{names[1]}: class {found} lies in {names[0]} as well; "
                "what needs another class's fields is a class of its own"
            )


def check_prefetches(root):
    """GCC treats a function that only prefetches as one without effect, and drops a call that it has not inlined."""
    for path in source_files(root):
        if path.suffix != ".h":
            continue
        head = ""
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            # A function's first line is that of a class's member or of a namespace's.
            if "(" in line and len(line) - len(line.lstrip()) <= 2:
                head = line
            if "__builtin_prefetch(" in line and "always_inline" not in head:
                yield f"{path.relative_to(root).as_posix()}: prefetches in a function that is not always inlined: {head.strip()}"


def check_binary(path):
    listing = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        if "NEEDED" in line and CUDA_LIBRARY.search(line):
            yield f"{path}: needs {line.split('[')[-1].rstrip(']')} at run time"


def broken_rules():
    """For each folder, an include from each of our folders that it may not include."""
    folders = sorted({"proto/base", "proto/wire", "kvclient", *RULES} - set(FILE_RULES))
    for rule, allowed in RULES.items():
        if rule in FILE_RULES:
            continue
        for folder in folders:
            # kvm/ and kvclient/ are the include folders' names.
            if folder not in allowed | {rule} and not folder.endswith("/include"):
                yield f"{rule}/broken_{folder.replace('/', '_')}.cc", f'#include "{folder}/a.h"'


SELF_TEST = {
    "proto/wire/c.h": ("#include <client/b.h>", "proto/wire/c.h: includes client/b.h"),
    "daemon/registry/g.cc": ('#  include "kvclient/client.h"', "daemon/registry/g.cc: includes kvclient/client.h"),
    "daemon/system/h.cc": ("#include <cuda_runtime_api.h>", "daemon/system/h.cc: includes cuda_runtime_api.h"),
    "client/kvctl/cli/k.cc": ('#include "client/connection/link.h"', "k.cc: includes client/connection/link.h"),
    "client/kvctl/views/l.cc": ('#include "../link.h"', "l.cc: includes ../link.h"),
    "client/kvctl/bench/l3.cc": ('#include "daemon/policy/lru.h"', "l3.cc: includes daemon/policy/lru.h"),
    "client/find/m.cc": ('#include "link.h"', 'm.cc: includes "link.h"'),
    "client/peers/n.cc": ("#include <cuda.h>", "n.cc: includes cuda.h"),
    "tests/unit/proto/o.cc": ('TEST_CASE("a, b",\n "[fault]")', 'o.cc: test "a, b" is tagged [fault]'),
    "tests/gpu/q.cc": (
        'TEST_CASE("d", "[gpu]") {\n  const auto backend = BackendOf(0);\n  KVM_NEED_GPUS(1);\n}',
        'q.cc: test "d" does not begin',
    ),
    "tests/unit/daemon/p.cc": ('TEST_CASE("c", "")', 'p.cc: test "c" is tagged nothing'),
    "tests/unit/r.cc": ('TEST_CASE("a b; c", "[unit]")', 'r.cc: test "a b; c" has a semicolon'),
    "cuda/import/good.cc": (
        '#include <cuda_runtime.h>\n#include "cuda/plan/b.h"\n#include "kvm/error.h"\n#include <cudaTypedefs.h>',
        None,
    ),
    "daemon/policy/good.cc": ('#include "daemon/policy/a.h"\n#include "proto/wire/b.h"', None),
    "daemon/broker/good.cc": (
        '#include "daemon/broker/a.h"\n#include "daemon/host_cache/a.h"\n#include "proto/shm/b.h"\n#include <boost/asio.hpp>',
        None,
    ),
    "client/kvctl/replay/good.cc": (
        '#include "client/kvctl/cli/a.h"\n#include "daemon/policy/a.h"\n#include "kvclient/client.h"',
        None,
    ),
    "daemon/host_cache/one.cc": (
        "namespace kvm {\nResult<int> Two::Part(std::size_t n) {\n}\n}  // namespace kvm",
        None,
    ),
    "daemon/host_cache/two.cc": (
        "namespace kvm {\nTwo::~Two() = default;\n}  // namespace kvm",
        "two.cc: class kvm::Two lies in",
    ),
    "daemon/host_cache/three.cc": (
        "namespace kvm {\nnamespace {\nvoid Two::Call() {}\n}  // namespace\nvoid Two::Impl::Call() {}\nstd::string Make(Two::Part part) {}\n"
        "  Two::Part(1);\n}  // namespace kvm\nnamespace kvm::other {\nvoid Two::Call() {}\n}  // namespace kvm::other",
        None,
    ),
    "client/find/two.cc": (
        "namespace kvm {\nbool Two::operator==(const Two& other) const {}\n}  // namespace kvm",
        None,
    ),
    "tests/gpu/import/good.cc": (
        'TEST_CASE("a", "[gpu]") {\n  KVM_NEED_GPUS(1);\n}\nTEST_CASE("b", "[gpu]") {\n  if (Missing()) KVM_SKIP("none");\n}',
        None,
    ),
    "proto/shm/prefetch.h": (
        "struct A {\n  [[gnu::always_inline]] void Read(int* at) {\n    __builtin_prefetch(at);\n  }\n"
        "  void Fetch(int* at) const {\n    if (at) __builtin_prefetch(at, 1);\n  }\n};",
        "prefetch.h: prefetches in a function that is not always inlined: void Fetch",
    ),
    "proto/shm/good.h": (
        "struct A {\n  [[gnu::always_inline]] void Fetch(int* at) const {\n    if (at) __builtin_prefetch(at);\n  }\n};",
        None,
    ),
    "tests/outside_headers.h": ('#include "tests/catch.h"', "tests/outside_headers.h: includes tests/catch.h"),
    "tests/unit/good.cc": ('#include "daemon/server/a.h"\nTEST_CASE("a", "[unit]")', None),
}


def self_test():
    broken = {**SELF_TEST, **{name: (text, f"{name}: includes") for name, text in broken_rules()}}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, (text, _) in broken.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        found = (
            list(check_includes(root))
            + list(check_tags(root))
            + list(check_gpu_tests(root))
            + list(check_classes(root))
            + list(check_prefetches(root))
        )
    for name, (_, expected) in broken.items():
        if expected is not None and not any(expected in line for line in found):
            yield f"self-test: {name} was not reported"
        if expected is None and any(line.startswith(name) for line in found):
            yield f"self-test: {name} was reported"
    wanted = [expected for _, expected in broken.values() if expected is not None]
    if len(found) != len(wanted):
        unexpected = [line for line in found if not any(expected in line for expected in wanted)]
        yield f"self-test: {len(found)} lines instead of {len(wanted)}; not expected: {'; '.join(unexpected)}"


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
        violations += check_classes(arguments.source)
        violations += check_prefetches(arguments.source)
    for binary in arguments.binary:
        violations += check_binary(binary)
    for line in violations:
        print(line, file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
