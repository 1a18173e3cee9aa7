#!/usr/bin/env python3
"""Checks that what is written about metrics is true: documents, alert rules, dashboard.

    check_monitoring.py --source DIR --kvctl KVCTL      holds them to kvctl's table of metrics
    check_monitoring.py --source DIR --promtool         promtool checks the rules, and that each alert fires where it
                                                        should; 77: there is no promtool
    check_monitoring.py --self-test --source DIR --kvctl KVCTL

docs/METRICS.md has the table as `kvctl exporter --list` prints it; alerts and dashboard use no other metric;
counters are used through rate(), increase() and the like; each alert has a section of docs/OPERATIONS.md and a
case of promtool's test that it fires and one that it does not, and there is none besides.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from metrics import names_in, table_of

MONITORING = "client/packaging/monitoring"
RULES = f"{MONITORING}/kvmd.rules.yml"
RULES_TEST = "tests/monitoring/kvmd.rules.test.yml"
DASHBOARD = f"{MONITORING}/kvmd-dashboard.json"


def alerts_of(text: str) -> list[tuple[str, str, str | None]]:
    """[(name, expression, runbook)] of a rules file, whose form is that of this repository's."""
    alerts = []
    for part in re.split(r"^\s*- alert: ", text, flags=re.MULTILINE)[1:]:
        name = part.split("\n", 1)[0].strip()
        expression = re.search(r"expr: (?:>-\n)?(.*?)\n\s+(?:for|labels):", part, re.DOTALL)
        assert expression is not None, part
        runbook = re.search(r"runbook: (\S+)", part)
        alerts.append((name, expression[1], runbook[1] if runbook else None))
    return alerts


def expressions_of(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """[(panel, expression)] of a dashboard, its variables' included."""
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    queries = [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    return found + [(each["name"], each["definition"]) for each in queries]


def check_expression(where: str, expression: str, types: dict[str, str]) -> Iterator[str]:
    for name in sorted(names_in(expression)):
        if name not in types:
            yield f"{where}: there is no metric {name}"
        elif types[name] == "counter" and not re.search(rf"(rate|increase)\(\s*{name}\b", expression):
            yield f"{where}: {name} is a counter; take its rate() or increase()"


def check(source: pathlib.Path, kvctl: str) -> Iterator[str]:
    table, types = table_of(kvctl)
    if table not in (source / "docs/METRICS.md").read_text():
        yield "docs/METRICS.md: its table is not the one that `kvctl exporter --list` prints"
    alerts = alerts_of((source / RULES).read_text())
    sections = set(re.findall(r"^### (Kvmd\w+)$", (source / "docs/OPERATIONS.md").read_text(), re.MULTILINE))
    for name, expression, runbook in alerts:
        yield from check_expression(f"{RULES}: {name}", expression, types)
        if runbook != f"docs/OPERATIONS.md#{name.lower()}":
            yield f"{RULES}: {name}: its runbook is {runbook}, not docs/OPERATIONS.md#{name.lower()}"
    tested = (source / RULES_TEST).read_text()
    for name, *_ in alerts:
        if f"alertname: {name}," not in tested or f'alertname="{name}"' not in tested:
            yield f"{RULES_TEST}: {name} is not in both of its tests"
    for name in sorted(sections ^ {alert[0] for alert in alerts}):
        yield f"{name} is either no alert of {RULES} or no section of docs/OPERATIONS.md"
    for panel, expression in expressions_of(json.loads((source / DASHBOARD).read_text())):
        if not names_in(expression):
            yield f"{DASHBOARD}: {panel}: {expression} names no metric"
        yield from check_expression(f"{DASHBOARD}: {panel}", expression, types)


def self_test(source: pathlib.Path, kvctl: str) -> Iterator[str]:
    """Each thing that is checked can fail."""
    spoilt = [
        ("docs/METRICS.md", "| `kvmd_up` | gauge |", "| `kvmd_upp` | gauge |"),
        (RULES, "kvmd_up ==", "kvmd_upp =="),
        (RULES, "#kvmddown", "#kvmdup"),
        (RULES, "rate(kvmd_dropped_blocks_total{", "(kvmd_dropped_blocks_total{"),
        ("docs/OPERATIONS.md", "### KvmdDown\n", ""),
        (RULES_TEST, 'alertname="KvmdSlow"', 'alertname="KvmdFast"'),
        (DASHBOARD, "kvmd_leased_bytes", "kvmd_leased_bits"),
    ]
    for file, old, new in spoilt:
        with tempfile.TemporaryDirectory() as name:
            copy = pathlib.Path(name)
            for each in ("docs/METRICS.md", "docs/OPERATIONS.md", RULES, RULES_TEST, DASHBOARD):
                (copy / each).parent.mkdir(parents=True, exist_ok=True)
                text = (source / each).read_text()
                assert each != file or old in text, (file, old)
                (copy / each).write_text(text.replace(old, new, 1) if each == file else text)
            if not list(check(copy, kvctl)):
                yield f"{file}: nothing was found wrong with {new or 'a missing ' + old.strip()}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--kvctl")
    parser.add_argument("--promtool", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.promtool:
        if shutil.which("promtool") is None:
            print("SKIPPED: no promtool here (scripts/install_deps.sh --metrics)")
            return 77
        tools = (["check", "rules", RULES], ["test", "rules", RULES_TEST])
        return max(subprocess.run(["promtool", *each], cwd=arguments.source, check=False).returncode for each in tools)
    wrong = list((self_test if arguments.self_test else check)(arguments.source, arguments.kvctl))
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
