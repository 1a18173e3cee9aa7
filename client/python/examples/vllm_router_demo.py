#!/usr/bin/env python3
"""Two vLLM engines behind a router: how much of a chat workload's prompts is not computed, by the router's policy.

    pip install ./client/python vllm sglang-router
    python client/python/examples/vllm_router_demo.py

Each policy of SGLang's router (``sglang_router``, which routes to any server of OpenAI's interface) gets the same
conversations, once for two engines without the connector and once for two with it. A conversation begins with one of
a few system prompts, and each of its turns sends all turns before. What the assistant has said is part of the
workload, so that all arms send the same. The model is a small random one with a token for each byte. Uses the node's
kvmd if one answers.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from demo_chats import TEMPLATE, add_options, measure, print_heading
from demo_servers import Server, engine, free_port, parse_options, write_model

POLICIES = ("round_robin", "cache_aware")


def router(policy: str, servers: list[Server], folder: Path, options: argparse.Namespace) -> Server:
    """SGLang's router in front of both engines."""
    command = [options.router_python, "-m", "sglang_router.launch_router", "--policy", policy]
    command += ["--prometheus-port", str(free_port()), "--worker-startup-timeout-secs", "600"]
    command += ["--worker-urls", *(f"http://127.0.0.1:{server.port}" for server in servers)]
    return Server(f"{policy} router", command, "/readiness", folder / f"{policy}.log")


def run_engines(arm: int, kvmd: str | None, folder: Path, options: argparse.Namespace) -> None:
    """Start two engines and one router after the other in front of them; a line for each. ``arm``: the first one's."""
    with ExitStack() as ending:
        servers = []
        connector = {"socket": kvmd} if kvmd else None
        for place in range(2):
            servers.append(engine(place, f"engine{place}", str(folder / "model"), connector, folder, options))
            ending.callback(servers[-1].stop)
        for server in servers:
            server.wait(options.start_timeout_s)
        for number, policy in enumerate(POLICIES):
            routing = router(policy, servers, folder, options)
            ending.callback(routing.stop)
            routing.wait(options.start_timeout_s)
            measure("on" if kvmd else "off", policy, routing.port, servers, arm + number, options)


def main() -> int:
    """Start kvmd, two engines and a router for each policy; send the conversations; end them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router-python", default=sys.executable, help="the Python that has sglang_router")
    add_options(parser)
    options = parse_options(parser)

    from kvclient.daemon import PrivateDaemon, default_socket, is_running

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end as well
    with ExitStack() as ending:
        kvmd = default_socket()
        if not is_running(kvmd):
            kvmd = ending.enter_context(PrivateDaemon()).socket
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="kvclient-router-")))
        write_model(folder / "model")
        (folder / "template").write_text(TEMPLATE)
        options.model = None
        options.engine += ["--chat-template", str(folder / "template")]
        print_heading()
        for number, shares in enumerate((False, True)):
            run_engines(number * len(POLICIES), kvmd if shares else None, folder, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
