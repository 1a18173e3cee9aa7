#!/usr/bin/env python3
"""The functions that libkvclient.so offers to programs, against the list of this minor version.

    symbols.py --source DIR --library FILE            every function of the list is there, and no public one besides
    symbols.py --source DIR --library FILE --write    writes the list anew, for a new minor version or a new function

The list, client/packaging/libkvclient.symbols, has the SONAME and the symbols of the public headers' functions, each
with what c++filt makes of it. A program that was linked against one release of a minor version runs with each
later one: a function that is gone, or has other parameters, needs a new minor version, which is a new SONAME.
"""

import argparse
import pathlib
import re
import subprocess
import sys

LIST = "client/packaging/libkvclient.symbols"
FOLDERS = ("client/include", "proto/include", "cuda/include")
DECLARED = re.compile(r"^ *(?:class|struct) (\w+)|^(?:\[\[nodiscard\]\] )?\w[\w:<>, *&]* \*?&?(\w+)\(", re.M)


def public_names(source):
    """Types and functions that the public headers declare."""
    names = set()
    for folder in FOLDERS:
        for path in (source / folder).rglob("*.h"):
            names |= {name for found in DECLARED.findall(path.read_text()) for name in found if name}
    assert {"Client", "Region", "KeyChain", "ErrcName"} <= names, names
    return names - {"Impl"}


def symbols(library, *options):
    command = ["nm", "--dynamic", "--defined-only", "--no-sort", *options, library]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^[0-9a-f]+ (\w) (.*)$", shown, re.M)


def offered(library, names):
    """{symbol: what c++filt makes of it} of the library's public functions, and its SONAME."""
    dynamic = subprocess.run(
        ["readelf", "--dynamic", "--wide", library], check=True, capture_output=True, text=True
    ).stdout
    found = {"SONAME": re.search(r"SONAME.*\[(.*)\]", dynamic)[1]}
    for (kind, symbol), (_, function) in zip(symbols(library), symbols(library, "--demangle"), strict=True):
        declared = re.match(r"kvm::(\w+)", function)
        if kind == "T" and declared and declared[1] in names and "::Impl" not in function:
            found[symbol] = function
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--library", required=True)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    found = offered(arguments.library, public_names(arguments.source))
    path = arguments.source / LIST
    if arguments.write:
        lines = sorted(found.items(), key=lambda each: (each[0] != "SONAME", each[1], each[0]))
        path.write_text("".join(f"{symbol} {function}\n" for symbol, function in lines))
        return 0
    listed = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    wrong = [f"gone: {listed[symbol]}" for symbol in listed.keys() - found.keys()]
    wrong += [f"not in {LIST}: {found[symbol]}" for symbol in found.keys() - listed.keys()]
    if listed["SONAME"] != found["SONAME"]:
        wrong.append(f"the library is {found['SONAME']}, and {LIST} is of {listed['SONAME']}")
    print(*sorted(wrong), sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
