#!/usr/bin/env python3
"""A real Prometheus scrapes kvctl exporter while a replay runs: every query of the dashboard returns data.

    scrape.py --source DIR --bin DIR        DIR has kvmd and kvctl; 77: there is no prometheus here

The rules are loaded as well, and none of them may fail to be evaluated.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from check_monitoring import DASHBOARD, MONITORING, RULES, expressions_of

PATIENCE_S = 60
Answer = TypeVar("Answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: str, done: Callable[[], Answer]) -> Answer:
    """Wait until `done` returns something true, and return that."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError):
            if answer := done():
                return answer
        assert time.monotonic() < deadline, f"{what} did not come about in {PATIENCE_S} s"
        time.sleep(0.2)


@contextlib.contextmanager
def running(folder: pathlib.Path, *command: str | pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended at the end, and whose output is shown if something failed."""
    log = folder / f"{pathlib.Path(command[0]).name}-{len(list(folder.glob('*.log')))}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen([str(each) for each in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield process
    except BaseException:
        print(f"---- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        process.terminate()
        process.wait(20)


class Prometheus:
    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.base}/{path}?{urllib.parse.urlencode(query)}", timeout=20) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def result(self, expression: str) -> Any:
        return self.ask("query", query=expression)["result"]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


def without_variables(expression: str) -> str:
    """The expression as Grafana sends it with all variables at "All"."""
    expression = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$(instance|domain)", ".*", expression)


def check(source: pathlib.Path, prometheus: Prometheus) -> tuple[int, int]:
    queries = [
        (panel, without_variables(each)) for panel, each in expressions_of(json.loads((source / DASHBOARD).read_text()))
    ]
    queries = [(panel, each) for panel, each in queries if not each.startswith("label_values(")]
    assert len(queries) > 20
    eventually("a rate", lambda: prometheus.result("rate(kvmd_imported_blocks_total[1m]) > 0"))
    # A rate needs two scrapes with the series, which not all have at once.
    for panel, expression in queries:
        eventually(f"data of {panel}, {expression},", functools.partial(prometheus.result, expression))
    assert float(prometheus.result("sum(rate(kvmd_lookup_keys_total[1m]))")[0]["value"][1]) > 0
    assert prometheus.result("kvmd_up")[0]["value"][1] == "1"
    eventually("an evaluation of every rule", lambda: all(rule["health"] == "ok" for rule in prometheus.rules()))
    assert len(prometheus.rules()) > 5
    return len(queries), len(prometheus.rules())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    if shutil.which("prometheus") is None:
        print("SKIPPED: no prometheus here (scripts/install_deps.sh --metrics)")
        return 77
    with tempfile.TemporaryDirectory(prefix="kvmd-scrape-") as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        kvmd_socket, exporter_port, port = folder / "kvmd.sock", free_port(), free_port()
        os.environ["KVMD_SOCKET"] = str(kvmd_socket)
        config = (arguments.source / MONITORING / "prometheus.yml").read_text()
        config = config.replace("127.0.0.1:9464", f"127.0.0.1:{exporter_port}").replace(
            "scrape_interval: 15s", "scrape_interval: 1s"
        )
        config = config.replace("global:", "global:\n  evaluation_interval: 1s")
        (folder / "prometheus.yml").write_text(config)
        shutil.copy(arguments.source / RULES, folder)
        stack.enter_context(running(folder, arguments.bin / "kvmd", "--socket", kvmd_socket, "--host-cache", "64M"))
        eventually("kvmd's start", kvmd_socket.is_socket)
        stack.enter_context(
            running(folder, arguments.bin / "kvctl", "exporter", "--listen-tcp", f"127.0.0.1:{exporter_port}")
        )
        storage = (f"--storage.tsdb.path={folder}/data", f"--config.file={folder}/prometheus.yml")
        stack.enter_context(running(folder, "prometheus", *storage, f"--web.listen-address=127.0.0.1:{port}"))
        prometheus = Prometheus(port)
        eventually("the first scrape", lambda: prometheus.result("kvmd_up"))
        replay = (
            "replay",
            "--workload",
            "chat",
            "--requests",
            "100000",
            "--workers",
            "2",
            "--backend",
            "host",
            "--model-id",
            "scraped",
        )
        stack.enter_context(running(folder, arguments.bin / "kvctl", *replay))
        queries, rules = check(arguments.source, prometheus)
        print(f"{queries} queries return data, {rules} rules are evaluated")
    return 0


if __name__ == "__main__":
    sys.exit(main())
