#!/usr/bin/env python3
"""Two nodes behind Dynamo's frontend, which routes by kvmd-mesh's events: how much of a chat workload is not computed.

    pip install ./client/python vllm                      # and kvmd-mesh in PATH
    python -m venv dynamo && dynamo/bin/pip install ai-dynamo
    python client/python/examples/vllm_dynamo_demo.py --router-python dynamo/bin/python

A node is a kvmd, a kvmd-mesh and a vLLM engine; all are processes of this machine. ``dynamo_worker.py`` makes each
engine a worker of Dynamo's and hands on what the node's kvmd-mesh tells of it. Each arm sends conversations of its own
through a frontend of its own, as ``vllm_router_demo.py`` does: ``round_robin``, and ``kv``, which sends a request to
the node that has most of its prompt. First the nodes don't know each other, then they fetch each other's blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from demo_chats import TEMPLATE, add_options, measure, print_heading
from demo_servers import Server, engine, free_port, parse_options, write_model

POLICIES = ("round-robin", "kv")
NODES = 2


def start(command: list[str], log: Path, ending: ExitStack, environment: dict[str, str] | None = None) -> None:
    """Start a process that ends with ``ending``."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    ending.callback(process.wait)
    ending.callback(process.terminate)


def start_nodes(
    arm: str, folder: Path, dynamo: dict[str, str], ending: ExitStack, options: argparse.Namespace
) -> list[Server]:
    """Start all nodes for an arm of ``--arms``; their engines."""
    from kvclient.daemon import PrivateDaemon

    ports = [free_port() for _ in range(NODES)]
    engines, events = [], []
    for node in range(NODES):
        connector = None
        if arm != "off":
            kvmd = ending.enter_context(PrivateDaemon()).socket
            connector = {"socket": kvmd, "mesh_socket": f"{kvmd}.mesh"}
            events.append(f"tcp://127.0.0.1:{free_port()}")
            mesh = [options.mesh, "--node", f"node{node}", "--socket", kvmd, "--mesh-socket", f"{kvmd}.mesh"]
            mesh += ["--listen", f"127.0.0.1:{ports[node]}", "--pull-interval-ms", "100", "--events", events[-1]]
            mesh += ["--events-replay", f"tcp://127.0.0.1:{free_port()}", "--pool-size", "256M"]
            for peer in range(NODES):
                if arm == "mesh" and peer != node:
                    mesh += ["--peers", f"node{peer}=127.0.0.1:{ports[peer]}"]
            start(mesh, folder / f"mesh{node}.log", ending)
        engines.append(engine(node, f"engine{node}", str(folder / "model"), connector, folder, options))
        ending.callback(engines[-1].stop)
    for node, each in enumerate(engines):
        each.wait(options.start_timeout_s)
        worker = [options.router_python, str(Path(__file__).with_name("dynamo_worker.py"))]
        worker += ["--server", f"http://127.0.0.1:{each.port}", "--model", str(folder / "model")]
        worker += ["--chat-template", str(folder / "template"), "--block-tokens", str(options.block_tokens)]
        worker += ["--events", events[node]] if events else []
        start(worker, folder / f"worker{node}.log", ending, dynamo)
    return engines


def complete(frontend: Server, health: bytes) -> bool:
    """Whether a frontend knows all workers, each of which has more than one endpoint, and their model."""
    workers = sum(each["endpoint"] == "generate" for each in json.loads(health)["instances"])
    with urllib.request.urlopen(f"http://127.0.0.1:{frontend.port}/v1/models", timeout=5) as answer:
        return workers == NODES and len(json.load(answer)["data"]) == 1


def frontend(policy: str, folder: Path, dynamo: dict[str, str], options: argparse.Namespace) -> Server:
    """Dynamo's frontend."""
    return Server(
        f"{policy} frontend",
        [options.router_python, "-m", "dynamo.frontend", "--router-mode", policy],
        "/health",
        folder / f"{policy}.log",
        environment=dynamo,
        listen=("--http-host", "--http-port"),
    )


def main() -> int:
    """Start the nodes and the frontends, send the conversations, end everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router-python", default=sys.executable, help="the Python that has ai-dynamo")
    parser.add_argument("--mesh", default="kvmd-mesh", help="the program kvmd-mesh")
    parser.add_argument("--arms", default="off,node,mesh", help="off: without the marketplace; node: each node alone")
    parser.add_argument("--block-tokens", type=int, default=32, help="tokens a block")
    add_options(parser)
    options = parse_options(parser)
    if shutil.which(options.mesh) is None:
        print(f"there is no {options.mesh}: --mesh names the program kvmd-mesh", file=sys.stderr)
        return 1

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end as well
    with tempfile.TemporaryDirectory(prefix="kvclient-dynamo-") as name:
        folder = Path(name)
        write_model(folder / "model")
        (folder / "template").write_text(TEMPLATE)
        options.model = None
        options.engine += ["--chat-template", str(folder / "template"), "--block-size", str(options.block_tokens)]
        print_heading()
        arm = 0
        for label in options.arms.split(","):
            with ExitStack() as ending:
                dynamo = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(folder / label)}
                engines = start_nodes(label, folder, dynamo, ending, options)
                for policy in POLICIES if label != "off" else POLICIES[:1]:
                    routing = frontend(policy, folder, dynamo, options)
                    ending.callback(routing.stop)
                    routing.wait(options.start_timeout_s, partial(complete, routing))
                    measure(label, policy, routing.port, engines, arm, options)
                    arm += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
