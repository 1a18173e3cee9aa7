#!/usr/bin/env python3
"""What the public headers' types look like in memory, against the list of this minor version, by libabigail.

    layouts.py --source DIR --cxx COMPILER              the types are those of the list: sizes, fields, values
    layouts.py --source DIR --cxx COMPILER --write      writes the list anew, for a new minor version or a new type
    layouts.py --source DIR --cxx COMPILER --self-test  changes of a public type are found, changes of a comment are not

The list, client/packaging/libkvclient.abi, is what abidw writes of a library that uses every public type, without what
the standard library and Boost bring along; abidiff compares. Together with the functions of symbols.py it is what a
program is linked with. Exit code 77: no libabigail (Debian: abigail-tools) or no GCC here.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

LIST = "client/packaging/libkvclient.abi"
FOLDERS = ("client/include", "proto/include", "cuda/include")
DEFINED = re.compile(r"^(?:class|struct|enum class) (\w+) (?:final )?(?:: [^{;]*)?\{", re.M)
REFERENCES = ("type-id", "method-class-id", "naming-typedef-id", "def-of-decl-id")
KEPT = ("abi-instr", "elf-function-symbols", "function-decl", "member-function", "base-class", "data-member")


def headers(source):
    """(what a program includes, the file) of every public header."""
    return [
        (path.relative_to(source / folder), path)
        for folder in FOLDERS
        for path in sorted((source / folder).rglob("*.h"))
    ]


def build(source, cxx, folder):
    """A library with one function for each public type."""
    names = sorted({name for _, path in headers(source) for name in DEFINED.findall(path.read_text())})
    assert {"Client", "ClientOptions", "Region", "BlockKey", "Errc"} <= set(names), names
    lines = [f"#include <{header}>" for header, _ in headers(source)]
    lines += [f'extern "C" void layout_of_{name}(const kvm::{name}&) {{}}' for name in names]
    (folder / "layouts.cc").write_text("\n".join(lines) + "\n")
    (folder / "layouts.map").write_text("{ global: layout_of_*; local: *; };\n")
    includes = [f"-I{source / each}" for each in FOLDERS]
    # Else a class with virtual functions is described only where these are.
    debug = ("-g", "-O0", "-femit-class-debug-always")
    command = [
        cxx,
        "-std=c++20",
        *debug,
        "-fPIC",
        "-shared",
        *includes,
        folder / "layouts.cc",
        "-o",
        folder / "layouts.so",
    ]
    subprocess.run([*command, f"-Wl,--version-script={folder / 'layouts.map'}"], check=True)
    return folder / "layouts.so", names


def leave_out_insides(node, ours=False):
    """Of other namespaces' classes, name and size are kept: the rest is of whatever standard library is here."""
    for child in list(node):
        if node.tag == "class-decl" and child.tag != "member-type" and not ours:
            node.remove(child)
        else:
            leave_out_insides(child, ours or (child.tag == "namespace-decl" and child.get("name") == "kvm"))


def leave_out_unused(root):
    """Types that nothing else in the list refers to."""
    found = True
    while found:
        used = {node.get(name) for node in root.iter() for name in REFERENCES}
        found = False
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag in KEPT:
                    continue
                ids = {each.get("id") for each in child.iter()} - {None}
                if (ids and not ids & used) or (child.tag in ("namespace-decl", "member-type") and len(child) == 0):
                    parent.remove(child)
                    found = True


def layouts(source, cxx, output):
    """Write what abidw says of the public types."""
    with tempfile.TemporaryDirectory() as name:
        library, names = build(source, cxx, pathlib.Path(name))
        options = (
            "--exported-interfaces-only",
            "--no-corpus-path",
            "--no-comp-dir-path",
            "--no-show-locs",
            "--no-elf-needed",
            "--no-architecture",
        )
        shown = subprocess.run(
            ["abidw", *options, "--no-parameter-names", library], check=True, capture_output=True, text=True
        )
    root = ElementTree.fromstring(shown.stdout)
    described = {
        node.get("name")
        for node in root.iter()
        if node.tag in ("class-decl", "enum-decl") and not node.get("is-declaration-only")
    }
    assert described >= set(names), set(names) - described
    for unit in root.iter("abi-instr"):
        unit.attrib.pop("path", None)
        leave_out_insides(unit)
    leave_out_unused(root)
    output.write_text(ElementTree.tostring(root, encoding="unicode") + "\n")


def differences(before, after):
    """What abidiff says, or nothing."""
    done = subprocess.run(["abidiff", before, after], capture_output=True, text=True)
    assert done.returncode & 3 == 0, f"abidiff failed: {done.stdout}{done.stderr}"
    return done.stdout if done.returncode else ""


# (what, header, before, after, whether a program would notice)
CHANGES = (
    (
        "a field is added at the end",
        "client/include/kvclient/types.h",
        "struct BlockWrite {",
        "struct BlockWrite {\n  int more = 0;",
        True,
    ),
    ("two fields change places", "proto/include/kvm/error.h", None, None, True),
    (
        "a value of an enum changes",
        "client/include/kvclient/client.h",
        "{ kConnecting, kConnected, kClosed }",
        "{ kConnected, kConnecting, kClosed }",
        True,
    ),
    (
        "a class gets a virtual function",
        "client/include/kvclient/match.h",
        "class Match {",
        "class Match {\n  virtual void More() {}",
        True,
    ),
    (
        "a type is added",
        "client/include/kvclient/types.h",
        "struct BlockWrite {",
        "struct More {\n  int more = 0;\n};\nstruct BlockWrite {",
        True,
    ),
    (
        "a comment changes",
        "client/include/kvclient/types.h",
        "struct BlockWrite {",
        "// More.\nstruct BlockWrite {",
        False,
    ),
)


def change(text, before, after):
    """The header with the change. Without one: the first two fields of struct Error change places."""
    if before is not None:
        assert text.count(before) == 1, before
        return text.replace(before, after)
    body = re.search(r"^struct Error \{\n(.*?)^\};", text, re.M | re.S)[1]
    fields = [line for line in body.splitlines(True) if re.match(r"  [\w:]+ \w+.*;", line)]
    first, second = fields[:2]
    return text.replace(body, body.replace(first, "\0").replace(second, first).replace("\0", second))


def self_test(source, cxx):
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        layouts(source, cxx, folder / "now.abi")
        for what, path, before, after, noticed in CHANGES:
            changed = folder / "changed"
            for each in FOLDERS:
                shutil.copytree(source / each, changed / each)
            (changed / path).write_text(change((changed / path).read_text(), before, after))
            layouts(changed, cxx, folder / "then.abi")
            said = differences(folder / "now.abi", folder / "then.abi")
            print(f"{'found' if said else 'nothing found'}: {what}")
            failed += bool(said) != noticed
            shutil.rmtree(changed)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--cxx", default="c++")
    for name in ("write", "self-test"):
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args()
    missing = [each for each in ("abidw", "abidiff") if shutil.which(each) is None]
    version = subprocess.run([arguments.cxx, "--version"], capture_output=True, text=True).stdout
    if missing or "Free Software Foundation" not in version:
        why = (
            f"no {' and no '.join(missing)} here (scripts/install_deps.sh --lint)" if missing else "the list is of GCC"
        )
        print(f"SKIPPED: {why}")
        return 77
    if arguments.self_test:
        return self_test(arguments.source, arguments.cxx)
    path = arguments.source / LIST
    if arguments.write:
        layouts(arguments.source, arguments.cxx, path)
        return 0
    with tempfile.TemporaryDirectory() as name:
        layouts(arguments.source, arguments.cxx, pathlib.Path(name, "now.abi"))
        said = differences(path, pathlib.Path(name, "now.abi"))
    print(said, end="")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
