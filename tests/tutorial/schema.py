#!/usr/bin/env python3
"""What kvctl prints with --json is what client/packaging/kvctl.schema.json says: these members, of these types.

    schema.py --source DIR --bin DIR         DIR has kvmd and kvctl

A kvmd with a host cache serves a replay by two workers. A list that is empty here is not looked into.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from questions import Node, lacks

TYPES = {
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
    "null": type(None),
}
SCHEMA = "client/packaging/kvctl.schema.json"


def is_a(value, name):
    # True is an int in Python.
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def differences(value, schema, where):
    """Each way in which a value is not what the schema says."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(is_a(value, name) for name in types):
        return [f"{where} is {value!r}, no {' or '.join(types)}"]
    if isinstance(value, list) and schema.get("items"):
        return [each for i, item in enumerate(value) for each in differences(item, schema["items"], f"{where}[{i}]")]
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    wrong = [f"{where} has no {name}" for name in schema.get("required", ()) if name not in value]
    for name, each in value.items():
        if name in schema["properties"]:
            wrong += differences(each, schema["properties"][name], f"{where}.{name}")
        # An answer may say more of some reasons.
        elif not where.startswith("explain.reasons"):
            wrong.append(f"{where} has {name}, which the schema has not")
    return wrong


def self_test(schema):
    said = {"blocks": 1, "bytes": 2, "leased": 3, "being_stored": 4}
    assert differences(said, schema["evict"], "evict") == []
    for wrong in (
        {**said, "more": 1},
        {**said, "bytes": "2"},
        {**said, "bytes": True},
        {"blocks": 1},
        [],
        {**said, "leased": None},
    ):
        assert differences(wrong, schema["evict"], "evict"), wrong


def commands_of(kvctl):
    """Every command that has --json, as kvctl's help names them."""
    said = subprocess.run([kvctl, "--help"], check=True, capture_output=True, text=True).stdout
    names = [
        line.split()[0]
        for line in said[said.index("Subcommands:") :].splitlines()[1:]
        if line.startswith("  ") and line[2] != " "
    ]
    assert len(names) > 20, names
    return names


# Those whose output is not of kvmd's state, or no JSON; docs/MESH.md has those of mesh.
WITHOUT = {"bench", "replay", "simulate", "mesh", "exporter", "completion", "support-bundle", "config"}


def main():
    parser = argparse.ArgumentParser()
    for name in ("source", "bin"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    schema = json.loads((arguments.source / SCHEMA).read_text())["definitions"]
    self_test(schema)
    missing = set(commands_of(arguments.bin / "kvctl")) - WITHOUT - schema.keys()
    assert not missing, f"{SCHEMA} has no {missing}"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "kvmd.toml").write_text("max-entries = 5\n")
        node = Node(folder, arguments.bin.resolve())
        try:
            node.serve()
            node.eventually("a full host cache and hot prefixes", lambda: lacks(node))
            region = json.loads(node.kvctl("regions", "--json")[1])["regions"][0]["name"]
            options = {
                "verify": ("--region", region),
                "ls": ("--limit", "5"),
                "find": ("--model", "org/chat", "--tokens", ",".join(str(each) for each in range(512))),
                "explain": ("--model", "org/chat", "--tokens", ",".join(str(each) for each in range(512))),
                "top": ("--count", "1"),
                "stat": ("--count", "1"),
                "config check": (str(folder / "kvmd.toml"), "--kvmd", str(node.programs / "kvmd")),
                "reclaim": ("--all",),
                "evict": ("--model", "org/chat"),
            }
            wrong = []
            for command in sorted(schema, key=lambda each: each in ("reclaim", "evict")):
                code, said = node.kvctl(*command.split(), *options.get(command, ()), "--json")
                lines = [line for line in said.splitlines() if line.startswith("{")]
                assert lines, f"kvctl {command}: {code}\n{said}"
                wrong += [each for line in lines for each in differences(json.loads(line), schema[command], command)]
            print(*sorted(set(wrong)), sep="\n", end="\n" if wrong else "")
            if wrong:
                sys.exit(1)
            print(f"{len(schema)} commands print what the schema says")
        finally:
            node.stop()


if __name__ == "__main__":
    main()
