#!/usr/bin/env python3
"""Fails when the public C++ headers have a type, function or constant without a comment that Doxygen reads.

    check_doxygen.py --source DIR      the headers of client/include, proto/include and cuda/include
    check_doxygen.py --source DIR --html OUT     also writes the documentation as HTML
    check_doxygen.py --self-test       that it finds what is missing

The tree's comments are plain ones, in front of what they describe or behind it in its line; Doxygen gets them in its
own form. Fields whose name says all have no comment, nor have moves, comparisons, and what is libkvclient's own
(Impl). 77: there is no doxygen here.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FOLDERS = ("client/include", "proto/include", "cuda/include")
# A comment of its own line, and one that follows code.
BEFORE = re.compile(r"^(\s*)// (?!NOLINT)")
BEHIND = re.compile(r"^(\s*[^\s/].*?[;,{}(]|\s*\w+(?: = \w+)?) +// (?!NOLINT)")
UNDOCUMENTED = re.compile(r"warning: (.*) is not documented")
NEEDS_NONE = re.compile(r"\(variable\)|operator|&&\)|Impl|impl\(\)")
SETTINGS = """
PROJECT_NAME = kvclient
INPUT = {headers}
RECURSIVE = YES
FILE_PATTERNS = *.h
STRIP_FROM_PATH = {headers}
STRIP_FROM_INC_PATH = {headers}
OUTPUT_DIRECTORY = {out}
EXTRACT_ALL = NO
WARN_IF_UNDOCUMENTED = YES
WARN_NO_PARAMDOC = NO
MACRO_EXPANSION = YES
MARKDOWN_SUPPORT = NO
AUTOLINK_SUPPORT = NO
GENERATE_LATEX = NO
GENERATE_HTML = {html}
GENERATE_XML = {xml}
QUIET = YES
"""


def for_doxygen(text):
    """The header with its comments in Doxygen's form."""
    lines = []
    for line in text.splitlines():
        made = BEFORE.sub(r"\1/// ", line)
        if made == line:
            made = BEHIND.sub(r"\1  ///< ", line)
        lines.append(made)
    return "\n".join(lines) + "\n"


def findings(headers, html=None):
    """What Doxygen says of {path: text}: undocumented ones, and whatever else it warns of."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path, text in headers.items():
            file = folder / "headers" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(for_doxygen(text))
        out = html or folder / "out"
        pathlib.Path(out).mkdir(parents=True, exist_ok=True)
        (folder / "Doxyfile").write_text(
            SETTINGS.format(
                headers=folder / "headers", out=out, html="YES" if html else "NO", xml="NO" if html else "YES"
            )
        )
        done = subprocess.run(["doxygen", folder / "Doxyfile"], check=True, capture_output=True, text=True)
        lines = [line.replace(f"{folder}/headers/", "") for line in done.stderr.splitlines() if "warning:" in line]
    # It takes std::hash<BlockKey> for a class of this tree's.
    lines = [line for line in lines if "std::hash<" not in line]
    missing = [line for line in lines if UNDOCUMENTED.search(line) and not NEEDS_NONE.search(line)]
    other = [line for line in lines if not UNDOCUMENTED.search(line)]
    return missing + other


def self_test():
    header = "// A file.\n#pragma once\nnamespace kvm {\n%s\n}  // namespace kvm\n"
    said = (
        header
        % "// What it is.\nclass Told {\n public:\n  int size() const;  // how many\n  Told(Told&&) noexcept;\n};"
    )
    assert findings({"a.h": said}) == [], findings({"a.h": said})
    for untold in (
        "class Untold {\n public:\n  int size() const;  // how many\n};",
        "// What it is.\nclass Told {\n public:\n  int size() const;\n};",
        "enum class Untold { kA };",
        "int Untold();",
    ):
        assert len(findings({"a.h": header % untold})) >= 1, untold


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--html", type=pathlib.Path)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if shutil.which("doxygen") is None:
        print("SKIPPED: no doxygen here (scripts/install_deps.sh --lint)")
        return 77
    if arguments.self_test:
        self_test()
        return 0
    headers = {
        path.relative_to(arguments.source / folder): path.read_text()
        for folder in FOLDERS
        for path in sorted((arguments.source / folder).rglob("*.h"))
    }
    found = findings(headers, arguments.html)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
