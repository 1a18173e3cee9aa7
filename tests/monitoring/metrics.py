"""The table of metrics as `kvctl exporter --list` prints it, and the names that a PromQL expression uses."""

import re
import subprocess

NAME = re.compile(r"\bkvmd_\w+")


def table_of(kvctl):
    """The table's text, and {name: type}; a histogram's series are counters."""
    text = subprocess.run([kvctl, "exporter", "--list"], check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert len(rows) > 20, text
    types = dict(rows)
    for name in [name for name, kind in rows if kind == "histogram"]:
        types |= {f"{name}_{part}": "counter" for part in ("bucket", "sum", "count")}
    return text, types


def names_in(expression):
    """The metrics that an expression names."""
    return set(NAME.findall(re.sub(r'"[^"]*"', '""', expression)))
