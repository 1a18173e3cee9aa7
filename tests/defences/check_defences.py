#!/usr/bin/env python3
"""Takes defences out of the code, one at a time, and requires that the tests of each fail.

    check_defences.py --source DIR                      that the tables (mutations/) fit the tree: each change can be made, and each
                                                        test is there; that docs/internals/defences.md names no test without a proof
    check_defences.py --source DIR --run BUILD [WORD…]  in a copy of the tree at BUILD, where KVM_WITHOUT=N leaves the defence N out:
                                                        each test (those with a WORD in their names) passes with it and fails without;
                                                        what skips here, or is not built, is printed as such
    check_defences.py --self-test                       that each rule can fail

A test has its proof in the table, or in the comment above it, which says "seen". Prints one line per finding and exits 1
if there are any.
"""

import argparse
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from mutations import MUTATIONS, Mutation

CASE = re.compile(r'((?:^//[^\n]*\n)*)^TEST_CASE\(\s*"((?:[^"]|"\s*\n\s*")*)"', re.MULTILINE)
NAMED = re.compile(r'"([^"\n]+)"')
SECONDS = 240  # for a test without its defence: one that waits until then has failed, too
PROGRAMS = ("kvmd", "kvctl", "kvmd-mesh")
SKIPPED = "skipped"
SWITCH = "tests/defences/without.h"
SWITCH_HEADER = """#pragma once
#include <cstdlib>
namespace kvm {
inline bool Without(int defence) {
  static const int chosen = [] {
    const char* number = std::getenv("KVM_WITHOUT");
    return number == nullptr ? 0 : std::atoi(number);
  }();
  return chosen == defence;
}
}  // namespace kvm
"""
# It gives kvmd an environment of its own.
SUPERVISOR = "tests/support/kvmd/supervisor.cc"
CARRIES = b'  if (const char* number = std::getenv("KVM_WITHOUT")) environment.push_back(std::string("KVM_WITHOUT=") + number);\n'


def cases(root):
    """Each test's sentence and the comment above it."""
    found = {}
    for path in sorted((root / "tests").rglob("*.cc")):
        for comment, sentence in CASE.findall(path.read_text(encoding="utf-8")):
            found[re.sub(r'"\s*\n\s*"', "", sentence)] = comment
    return found


def sentences(known, beginning):
    """The tests whose sentence begins so."""
    return [each for each in known if each.startswith(beginning)]


def named_in(document):
    """The tests that the tables of a document name in their last column, and whether they need a proof: those of
    a table with a column of defences.
    """
    for line in document.splitlines():
        cells = line.strip().strip("|").split(" | ")
        if line.startswith("| ") and len(cells) > 1:
            yield from ((name, len(cells) > 2) for name in NAMED.findall(cells[-1]))


def overlapping(root, mutations):
    """One line for each change that can't be made once the one before it in the file has been."""
    for name in sorted({mutation.file for mutation in mutations}):
        text = (root / name).read_text(encoding="utf-8")
        places = sorted((text.find(each.old), len(each.old), each.old) for each in mutations if each.file == name)
        for (begin, size, _), (following, _, old) in itertools.pairwise(places):
            if begin >= 0 and following < begin + size:
                yield f"mutations: in {name} another change overlaps {old!r}"


def check(root, mutations):
    """One line for each change that can't be made, and for each test that is not there or has no proof."""
    known = cases(root)
    proved = set()
    lists = "".join(
        path.read_text(encoding="utf-8")
        for path in [*(root / "tests").glob("*.cmake"), *(root / "tests").glob("CMakeLists.txt")]
    )
    for mutation in mutations:
        for binary, beginning in mutation.tests:
            if f"(NAME {binary} " not in lists:
                yield f"mutations: no test binary is {binary!r}"
            found = sentences(known, beginning)
            if len(found) != 1:
                yield f"mutations: {len(found)} tests begin with {beginning!r}"
            proved.update(found)
        times = (root / mutation.file).read_text(encoding="utf-8").count(mutation.old)
        if times != 1:
            yield f"mutations: {mutation.file} has {times} times {mutation.old!r}"
        if re.search(r"\bOFF\b", mutation.new) is None:
            yield f"mutations: nothing is left out of {mutation.file}: {mutation.new!r}"
    yield from overlapping(root, mutations)
    for beginning, needs_proof in named_in((root / "docs/internals/defences.md").read_text(encoding="utf-8")):
        found = sentences(known, beginning)
        if len(found) != 1:
            yield f"docs/internals/defences.md: {len(found)} tests begin with {beginning!r}"
        elif needs_proof and found[0] not in proved and re.search(r"\bseen\b", known[found[0]], re.IGNORECASE) is None:
            yield f"docs/internals/defences.md: nothing says how {beginning!r} was seen to fail"


def mutated(name, text, mutations):
    """A file with all changes that are made in it; each by the number of its defence."""
    chosen = [(number, each) for number, each in enumerate(mutations, 1) if each.file == name]
    for number, mutation in chosen:
        text = text.replace(mutation.old, re.sub(r"\bOFF\b", f"kvm::Without({number})", mutation.new))
    return f'#include "{SWITCH}"\n{text}' if chosen else text


class Copy:
    """A copy of the tree in which each defence has a switch, with its own build."""

    def __init__(self, source, build, mutations):
        self.tree = build
        self.build = build / "build/ci"  # as preset ci has it: ccache compares paths
        self.tree.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(
            ["git", "-C", source, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        files = {
            name: (source / name).read_bytes() for name in listed.split("\0") if name and (source / name).is_file()
        }
        for name in {mutation.file for mutation in mutations}:
            files[name] = mutated(name, files[name].decode(), mutations).encode()
        files[SWITCH] = SWITCH_HEADER.encode()
        files[SUPERVISOR] = files[SUPERVISOR].replace(
            b"  std::vector<char*> argv, envp", CARRIES + b"  std::vector<char*> argv, envp"
        )
        for path in sorted(self.tree.rglob("*")):
            name = path.relative_to(self.tree).as_posix()
            if path.is_file() and not name.startswith("build/") and name not in files:
                path.unlink()
        for name, content in files.items():  # only what differs, which is built again
            path = self.tree / name
            if not path.exists() or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.chmod((source / name).stat().st_mode if (source / name).exists() else 0o644)
        options = ["--preset", "ci", "-DKVM_UNITY=ON", "-DKVM_PYTHON_ENV=", "-DKVM_VLLM_ENV="]
        if shutil.which("ccache"):
            options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
        subprocess.run(["cmake", *options], cwd=self.tree, check=True, stdout=subprocess.DEVNULL)

    def targets(self):
        """The names of what can be built here."""
        listed = subprocess.run(
            ["cmake", "--build", str(self.build), "--target", "help"], capture_output=True, text=True, check=True
        )
        return set(re.findall(r"^(\S+): phony$", listed.stdout, re.MULTILINE))

    def make(self, binaries):
        """Builds, the programs as well that tests start. Returns what was wrong."""
        environment = {**os.environ, "CCACHE_BASEDIR": str(self.tree), "CCACHE_NOHASHDIR": "1"}
        targets = sorted({*binaries, *PROGRAMS} & self.targets())
        done = subprocess.run(
            ["cmake", "--build", str(self.build), "--target", *targets],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return None if done.returncode == 0 else done.stdout[-2000:]

    def fails(self, binary, test, without):
        """Why the test fails without that defence (0: with all of them); SKIPPED; None: it passes, or did not run."""
        command = [str(self.build / "bin" / binary), test.replace(",", "\\,").replace("[", "\\[") + "*"]
        environment = {**os.environ, "KVM_WITHOUT": str(without)}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return "no end"
        if "SKIPPED:" in done.stdout:
            return SKIPPED
        if done.returncode == 0 or "No test" in done.stdout + done.stderr:
            return None
        said = re.findall(r"^\S+:\d+: FAILED:\n(?:  .*\n)+", done.stdout, re.MULTILINE)
        return " ".join((said[0] if said else f"exit status {done.returncode}").split())[:200]


def run(copy, mutations, words):
    """One line for each test that passes without its defence, or fails with it."""
    chosen = [
        (number, mutation.file, binary, test)
        for number, mutation in enumerate(mutations, 1)
        for binary, test in mutation.tests
        if not words or any(word in test for word in words)
    ]
    wrong = copy.make({binary for _, _, binary, _ in chosen})
    if wrong:
        yield f"the tree does not build: {wrong}"
        return
    built = copy.targets()
    for number, file, binary, test in chosen:
        if binary not in built:
            print(f"{test}: {binary} is not built here", flush=True)
        elif (why := copy.fails(binary, test, 0)) == SKIPPED:
            print(f"{test}: {why}", flush=True)
        elif why:
            yield f"{test!r} fails with its defence: {why}"
        elif why := copy.fails(binary, test, number):
            print(f"{test}: {why}", flush=True)
        else:
            yield f"{test!r} passes without its defence in {file}"


def self_test():
    """What the check misses of a tree with one fault of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in {
            "a.cc": "one two two four five six",
            "b.cc": "one two",
            "tests/t.cmake": "kvm_test(NAME t LABEL unit)",
            "tests/unit/t.cc": '// Without one it fails: seen.\nTEST_CASE("Seen: a", "[unit]") {}\n\n// Of a kind\n'
            'TEST_CASE("Bare: a") {}\nTEST_CASE(\n    "Long: a "\n    "b") {}\nTEST_CASE("Twice: a") {}\nTEST_CASE("Twice: b") {}\n',
            "docs/internals/defences.md": '| a | b | "Seen: a", "Long: a b" |\n| a | b | "Bare: a" |\n| a | b | "None: a" |\n| c | "Bare: a" |\n| c | "None: b" |\n',
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        table = [
            Mutation((("t", "Long: a b"),), "a.cc", "one", "OFF"),
            Mutation((("t", "Twice:"),), "a.cc", "four", "OFF"),
            Mutation((("t", "Seen: a"),), "a.cc", "two", "OFF"),
            Mutation((("t", "Seen: a"),), "a.cc", "three", "OFF"),
            Mutation((("t", "Seen: a"),), "a.cc", "five", "KICKOFF"),
            Mutation((("u", "Seen: a"),), "a.cc", "six", "OFF"),
            Mutation((("t", "Seen: a"),), "b.cc", "one two", "OFF"),
            Mutation((("t", "Seen: a"),), "b.cc", "two", "OFF"),
        ]
        found = list(check(root, table))
    expected = [
        "2 tests begin with 'Twice:'",
        "has 2 times",
        "has 0 times",
        "nothing is left out",
        "binary is 'u'",
        "b.cc another change overlaps 'two'",
        "how 'Bare: a' was seen",
        "0 tests begin with 'None: a'",
        "0 tests begin with 'None: b'",
    ]
    for each in expected:
        if not any(each in line for line in found):
            yield f"self-test: not reported: {each}"
    if len(found) != len(expected):
        yield "self-test: reported " + "; ".join(found)
    if (
        mutated("a.cc", "one two", table[:1]) != f'#include "{SWITCH}"\nkvm::Without(1) two'
        or mutated("c.cc", "one", table) != "one"
    ):
        yield "self-test: changes are not made"


def main():
    parser = argparse.ArgumentParser(description="Takes defences out, one at a time, and requires that a test fails.")
    parser.add_argument("--source", type=pathlib.Path, help="root of the tree")
    parser.add_argument("--run", type=pathlib.Path, metavar="BUILD", help="a folder for the copy and its build")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("words", nargs="*", help="only tests with one of these words in their names")
    arguments = parser.parse_args()
    findings = list(self_test()) if arguments.self_test else []
    if arguments.source is not None:
        source = arguments.source.resolve()
        findings += check(source, MUTATIONS)
        if arguments.run is not None and not findings:
            for finding in run(Copy(source, arguments.run.resolve(), MUTATIONS), MUTATIONS, arguments.words):
                print(finding, flush=True)
                findings.append(finding)
    for line in findings:
        print(line, file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
