"""What the two-engine demonstration measures, arm by arm."""

from __future__ import annotations

import argparse
import importlib.util
import json
import socket as sockets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo_engine import Remote


def visible(gpus: list[str], engine: int) -> str:
    """CUDA_VISIBLE_DEVICES of an engine: its own GPU first, then its peer's, which it must see to map its memory."""
    return ",".join(dict.fromkeys([gpus[engine], *gpus])) if gpus[engine] else ""


def market_config(socket: str, options: argparse.Namespace, **extra: Any) -> dict[str, Any]:
    """What goes into --kv-transfer-config."""
    return {
        "kv_connector": "KvMarketConnector",
        "kv_connector_module_path": "kvclient.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "socket": socket,
            "load": options.load,
            "max_sms": options.max_sms,
            "verify": options.verify,
            "kv_pool": options.kv_pool,
            **extra,
        },
    }


def listens(port: int) -> bool:
    """Whether this machine accepts connections on a port."""
    with sockets.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def lmcache_server(gibibytes: int, log: Path) -> Iterator[dict[str, Any]]:
    """LMCache's server, and what goes into --kv-transfer-config for it."""
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lmcache.cli.main", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--l1-size-gb", str(gibibytes), "--l1-init-size-gb", str(gibibytes), "--eviction-policy", "LRU"]
    command += ["--max-workers", "4"]
    with log.open("a") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while not listens(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("lmcache server did not start:\n" + log.read_text(errors="replace")[-4000:])
            time.sleep(0.2)
        yield {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
        }
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_kept(socket: str, patience_s: float = 60) -> None:
    """Until kvmd's host cache has stopped growing."""
    from kvclient.daemon import find_binary

    command = [str(Path(find_binary()).with_name("kvctl")), "status", "--socket", socket, "--json"]
    last, since, end = -1, time.monotonic(), time.monotonic() + patience_s
    while time.monotonic() < end and time.monotonic() - since < 2:
        status = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if status["host_cache"]["bytes"] != last:
            last, since = status["host_cache"]["bytes"], time.monotonic()
        time.sleep(0.1)


def measure(engine: Remote, options: argparse.Namespace, seeds: list[int]) -> dict[str, Any]:
    """Engine B's figures in one arm."""
    before = engine.call("totals")
    cold = engine.call("first_tokens", seeds, options.prompt_tokens)
    after = engine.call("totals")
    warm = engine.call("first_tokens", seeds, options.prompt_tokens)
    return {
        "cold": cold,
        "warm": warm,
        "answers": engine.call("answers", seeds, options.prompt_tokens, options.new_tokens),
        "counted": {name: after[name] - before.get(name, 0) for name in after},
    }


class Arms:
    """Starts engines and collects readings; one arm after the other."""

    def __init__(
        self,
        options: argparse.Namespace,
        gpus: list[str],
        socket: str,
        log: Path,
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        """``gpus``: of engine A and of engine B, empty names on a CPU. ``socket``: kvmd's. ``log``: the engines'.

        ``keep`` is called with all readings so far after each one, so that a run that is cut short leaves them.
        """
        self.readings: dict[str, Any] = {}
        self._keep = keep
        self._options, self._gpus, self._socket, self._log = options, gpus, socket, log
        self._settings = {
            "shape": options.shape,
            "max_tokens": options.prompt_tokens + 256,
            "eager": options.eager,
            "kv_bytes": options.kv_bytes if gpus[0] else 0,
            "memory": 0.45 if gpus[0] == gpus[1] or options.tp > 1 else 0.9,
            "tp": options.tp,
            "block_tokens": options.block_tokens,
        }
        self._seeds = list(range(1000, 1000 + options.prompts))
        self._unrelated = list(range(5000, 5000 + options.requests))
        self._unrelated_tokens = max(64, options.prompt_tokens // 8)

    def run(self, name: str) -> None:
        """One arm. SystemExit if an engine or server ends."""
        from kvclient.daemon import PrivateDaemon

        options = self._options
        if name == "off":
            self._two_engines(name, None)
        elif name == "marketplace":
            self._two_engines(name, market_config(self._socket, options))
        elif name == "host-cache":
            with PrivateDaemon(["--host-cache", f"{options.cache_gib}G"]) as daemon:
                self._two_engines(name, market_config(daemon.socket, options), kept_in=daemon.socket)
        elif name == "herd":
            self._herd()
        elif name == "own-cache":
            self._own_cache()
        elif importlib.util.find_spec("lmcache") is not None:
            with lmcache_server(options.cache_gib, self._log) as connector:
                self._two_engines(name, connector)

    def _start(self, connector: dict[str, Any] | None, *engines: int) -> list[Remote]:
        """Engines 0 (A) and 1 (B), started side by side."""
        settings = {**self._settings, "connector": connector}
        started = [Remote(visible(self._gpus, engine), settings, self._log) for engine in engines]
        return [engine.ready() for engine in started]

    def _warm_up(self, engine: Remote) -> None:
        options = self._options
        engine.call("first_tokens", [1, 2, 3], options.prompt_tokens)
        engine.call("throughput", list(range(100, 100 + options.requests)), self._unrelated_tokens, 8)
        engine.call("answers", [1], 64, options.new_tokens)

    def _two_engines(self, name: str, connector: dict[str, Any] | None, kept_in: str = "") -> None:
        """Engine A computes the prompts, then engine B is measured; then B starts anew and is measured again.

        ``kept_in``: the socket of a kvmd whose host cache gets all of A's blocks before A ends.
        """
        options, seeds = self._options, self._seeds
        a, b = self._start(connector, 0, 1)
        self._warm_up(a)
        self._warm_up(b)
        runs = [[seed + 10_000 * run for seed in self._unrelated] for run in range(3)]
        self.readings[name] = {
            "throughput": [b.call("throughput", unrelated, self._unrelated_tokens, 16) for unrelated in runs]
        }
        b.call("forget")
        a.call("forget")
        a.call("first_tokens", seeds, options.prompt_tokens)
        a.call("idle")
        if kept_in:
            wait_until_kept(kept_in)
            a.stop()
        time.sleep(0.5)
        self.readings[name] |= measure(b, options, seeds)
        self._keep(self.readings)
        b.stop()
        if connector is not None:
            [b] = self._start(connector, 1)
            # Kernels are loaded; no prompt of the arm has been seen
            b.call("first_tokens", [1], 64)
            self.readings["restarted" if name == "marketplace" else f"{name} restarted"] = measure(b, options, seeds)
            self._keep(self.readings)
            b.stop()
        if not kept_in:
            a.stop()

    def _herd(self) -> None:
        """Both engines are asked for one prompt at once: first as they are, then waiting for what is being computed."""
        options = self._options
        for name, wait_s in (("herd", 0.0), ("herd, waiting", 5.0)):
            both = self._start(market_config(self._socket, options, wait_for_computing_s=wait_s), 0, 1)
            for engine in both:
                self._warm_up(engine)
            rounds = []
            for seed in range(20_000, 20_003):
                for engine in both:
                    engine.send("herd", seed + int(wait_s), options.prompt_tokens, options.copies)
                rounds.append([engine.answer() for engine in both])
            self.readings[name] = {"rounds": rounds, "totals": [engine.call("totals") for engine in both]}
            self._keep(self.readings)
            for engine in both:
                engine.stop()

    def _own_cache(self) -> None:
        """Hits of the engine's own prefix cache in new processes, each with the median of its prompts."""
        options, seeds = self._options, self._seeds
        medians: dict[str, list[float]] = {"off": [], "marketplace": []}
        self.readings["own prefix cache"] = medians
        while len(medians["marketplace"]) < options.processes:
            for name, connector in (("off", None), ("marketplace", market_config(self._socket, options))):
                # Measured one after the other: they share the processors
                for engine in self._start(connector, 0, 1):
                    engine.call("first_tokens", [1, 2, 3], options.prompt_tokens)
                    engine.call("first_tokens", seeds, options.prompt_tokens)
                    seconds = []
                    for _ in range(3):
                        seconds += engine.call("first_tokens", seeds, options.prompt_tokens)["seconds"]
                    medians[name].append(statistics.median(seconds))
                    self._keep(self.readings)
                    engine.stop()
