"""The table of metrics as `kvctl exporter --list` prints it, and the names that a PromQL expression uses."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

NAME = re.compile(r"\bkvmd_\w+")


def table_of(kvctl: str | Path) -> tuple[str, dict[str, str]]:
    """The table's text, and {name: type}; a histogram's series are counters."""
    text = subprocess.run([kvctl, "exporter", "--list"], check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert len(rows) > 20, text
    types: dict[str, str] = dict(rows)
    for name in [name for name, kind in rows if kind == "histogram"]:
        types |= {f"{name}_{part}": "counter" for part in ("bucket", "sum", "count")}
    return text, types


def names_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    return set(NAME.findall(re.sub(r'"[^"]*"', '""', expression)))
