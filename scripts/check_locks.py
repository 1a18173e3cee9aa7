#!/usr/bin/env python3
"""Has clang check how locks are used: every file that uses kvm::Mutex (proto/base/thread_safety.h) is read, not
compiled, with -Wthread-safety as an error. Nothing else uses std::mutex, whose use clang can't check.

    check_locks.py BUILD_DIR       a configured build, whose compile_commands.json says how each file is read
    check_locks.py --self-test     that a wrong use is found

Prints what clang says and exits 1 if there is anything, 77 without a clang++ (CLANG names another one).
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("proto", "cuda", "daemon", "client")
USES_LOCKS = re.compile(r"\b(MutexLock|KVM_GUARDED_BY|KVM_REQUIRES)\b")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
OWN_LOCKS = re.compile(r"\bstd::(recursive_|shared_|timed_)?(mutex|lock_guard|unique_lock|scoped_lock|shared_lock)\b")
MAY_OWN = {
    "proto/base/thread_safety.h",
    # The Python package is built over the installed headers alone.
    "client/python/src/gil.cc",
    "client/python/src/import_ticket.h",
}
KEPT_OPTIONS = re.compile(r"-(D|I|std=|isystem)")
WARNINGS = ["-fsyntax-only", "-Wthread-safety", "-Werror=thread-safety"]

WRONG = """
#include "proto/base/thread_safety.h"
class Counter {
 public:
  void Add() { ++count_; }
 private:
  kvm::Mutex mutex_;
  int count_ KVM_GUARDED_BY(mutex_) = 0;
};
void Use(Counter& counter) { counter.Add(); }
"""
RIGHT = WRONG.replace("{ ++count_; }", "{ kvm::MutexLock lock(mutex_); ++count_; }")


def uses_locks(path):
    return path.is_file() and USES_LOCKS.search(path.read_text(encoding="utf-8")) is not None


def is_checked(source):
    """A file that locks, or that includes a header with guarded members."""
    text = source.read_text(encoding="utf-8")
    return USES_LOCKS.search(text) is not None or any(uses_locks(ROOT / each) for each in INCLUDE.findall(text))


def own_locks():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.suffix not in {".h", ".cc", ".cu"} or name in MAY_OWN:
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                found = OWN_LOCKS.search(line.split("//")[0])
                if found:
                    yield f"{name}:{number}: {found.group()}; use kvm::Mutex and MutexLock (proto/base/thread_safety.h)"


def options_of(entry):
    words = shlex.split(entry["command"]) if "command" in entry else list(entry["arguments"])
    kept = []
    for at, word in enumerate(words):
        if KEPT_OPTIONS.match(word):
            kept += [word, words[at + 1]] if word in {"-I", "-D", "-isystem"} else [word]
    return kept


def sources_of(path):
    """What an entry of compile_commands.json compiles: with KVM_UNITY, a file that includes several sources."""
    if path.parent.name != "Unity":
        return [path]
    return [pathlib.Path(each) for each in INCLUDE.findall(path.read_text(encoding="utf-8"))]


def check(clang, source, options, folder):
    ran = subprocess.run(
        [clang, *options, *WARNINGS, str(source)], cwd=folder, capture_output=True, text=True, check=False
    )
    return ran.stderr if ran.returncode != 0 else ""


def check_build(clang, build):
    entries = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    sources = []
    for entry in entries:
        for source in sources_of((pathlib.Path(entry["directory"]) / entry["file"]).resolve()):
            if (
                source.is_relative_to(ROOT)
                and source.relative_to(ROOT).parts[0] in FOLDERS
                and source.suffix == ".cc"
                and is_checked(source)
            ):
                sources.append((source, options_of(entry), entry["directory"]))
    if not sources:
        yield f"{build}: compiles nothing that uses locks"
    print(f"locks: {len(sources)} files", flush=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from filter(None, pool.map(lambda each: check(clang, *each), sources))


def self_test(clang):
    with tempfile.TemporaryDirectory() as folder:
        for name, text, wrong in (("wrong.cc", WRONG, True), ("right.cc", RIGHT, False)):
            source = pathlib.Path(folder) / name
            source.write_text(text, encoding="utf-8")
            found = check(clang, source, ["-std=c++20", f"-I{ROOT}"], folder)
            if ("requires holding mutex" in found) != wrong:
                yield f"self-test: {name}: clang said {found or 'nothing'}"
    if not OWN_LOCKS.search("  std::mutex mutex_;") or OWN_LOCKS.search("  std::condition_variable changed_;"):
        yield "self-test: std::mutex is not told from other types"


def main():
    parser = argparse.ArgumentParser(description="Has clang check how locks are used.")
    parser.add_argument("build", type=pathlib.Path, nargs="?")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    violations = list(own_locks())
    clang = os.environ.get("CLANG") or shutil.which("clang++")
    if clang is None and not violations:
        print("SKIPPED: no clang++ here", file=sys.stderr)
        return 77
    if clang is not None and arguments.self_test:
        violations += self_test(clang)
    if clang is not None and arguments.build is not None:
        violations += check_build(clang, arguments.build)
    for line in violations:
        print(line.rstrip(), file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
