#!/usr/bin/env python3
"""Checks that the shipped configuration file has kvmd's default values.

    check_defaults.py KVMD KVMD_TOML

Every option of `kvmd --help` that has a default must be a key of the file, with that value, and the
file must have no other keys. CLI11 prints a default as "=VALUE" (2.1) or "[VALUE]" (2.4).
"""

import re
import subprocess
import sys

import tomllib


def options(help_text):
    """{name: the rest of its line} of the options that take a value."""
    found = {}
    for line in help_text.splitlines():
        match = re.match(r"\s+--([a-z-]+) (\S.*)", line)
        if match and re.search(r"=\S+\s*$|\[[^\]]*\]\s*$", match[2]):
            found[match[1]] = match[2].rstrip()
    return found


def main():
    kvmd, path = sys.argv[1:]
    found = options(subprocess.run([kvmd, "--help"], check=True, capture_output=True, text=True).stdout)
    with open(path, "rb") as file:
        shipped = tomllib.load(file)
    wrong = [f"--{name} is not in the file" for name in sorted(found.keys() - shipped.keys())]
    wrong += [f"{name} is no option with a default" for name in sorted(shipped.keys() - found.keys())]
    for name in sorted(found.keys() & shipped.keys()):
        value = str(shipped[name])
        if not found[name].endswith(("=" + value, "[" + value + "]")):
            wrong.append(f"{name} is {value} in the file; kvmd --help says {found[name]}")
    for line in wrong:
        print(line)
    if len(found) < 10:
        print(f"only {len(found)} options recognised in kvmd --help")
    return 1 if wrong or len(found) < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
