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
import importlib.util
import json
import random
import signal
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vllm_pd_demo import Server, engine, free_port, prompt_of, write_model

TEMPLATE = "{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}assistant:"
POLICIES = ("round_robin", "cache_aware")


def chat(port: int, messages: list[dict[str, str]], options: argparse.Namespace) -> tuple[int, int]:
    """One request: the prompt's tokens, and how many of them were not computed."""
    body: dict[str, Any] = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": options.new_tokens}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        usage = json.load(answer)["usage"]
    return usage["prompt_tokens"], (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def conversations(arm: int, options: argparse.Namespace) -> list[list[list[dict[str, str]]]]:
    """For each turn the requests of all conversations, in an order that the arm does not change.

    Texts begin with the arm's number, so that no arm finds what another one has computed.
    """
    dice = random.Random(7)
    systems = [f"{arm} {prompt_of(100 + i, options.system_length)}" for i in range(options.systems)]
    talks = [[{"role": "system", "content": systems[i % options.systems]}] for i in range(options.conversations)]
    turns = []
    for turn in range(options.turns):
        for i, talk in enumerate(talks):
            if turn:
                said = prompt_of(10_000 + 100 * i + turn, options.turn_length)
                talk.append({"role": "assistant", "content": said})
            talk.append({"role": "user", "content": prompt_of(20_000 + 100 * i + turn, options.turn_length)})
        order = list(range(len(talks)))
        dice.shuffle(order)
        turns.append([list(talks[i]) for i in order])
    return turns


def run_arm(port: int, arm: int, options: argparse.Namespace) -> tuple[int, int, int]:
    """The arm's requests, their prompts' tokens, and how many of these were not computed."""
    requests = tokens = cached = 0
    with ThreadPoolExecutor(options.concurrency) as threads:
        for turn in conversations(arm, options):
            # A conversation's next turn begins after the answer
            for prompt, found in threads.map(lambda messages: chat(port, messages, options), turn):
                requests, tokens, cached = requests + 1, tokens + prompt, cached + found
    return requests, tokens, cached


def imported(servers: list[Server]) -> int:
    """Blocks that the engines have imported, as their metrics say."""
    count = 0.0
    for server in servers:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("vllm:kvmarket_imported_blocks_total"):
                    count += float(line.split()[-1])
    return int(count)


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
        for name in ("prefill", "decode"):  # as the other example calls them: here both do both
            servers.append(engine(name, str(folder / "model"), kvmd, folder, options))
            ending.callback(servers[-1].stop)
        for server in servers:
            server.wait(options.start_timeout_s)
        for number, policy in enumerate(POLICIES):
            routing = router(policy, servers, folder, options)
            ending.callback(routing.stop)
            routing.wait(options.start_timeout_s)
            before = imported(servers)
            requests, tokens, cached = run_arm(routing.port, arm + number, options)
            print(
                f"{'on' if kvmd else 'off':11}  {policy:11}  {requests:8}  {tokens:13,}  {cached:12,}"
                f"  {imported(servers) - before:15,}   {cached / tokens:.1%}",
                flush=True,
            )


def main() -> int:
    """Start kvmd, two engines and a router for each policy; send the conversations; end them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="", help="of the two engines, as 0,1")
    parser.add_argument("--router-python", default=sys.executable, help="the Python that has sglang_router")
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--systems", type=int, default=4, help="different system prompts")
    parser.add_argument("--system-length", type=int, default=600, help="characters")
    parser.add_argument("--turn-length", type=int, default=200, help="characters")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--start-timeout-s", type=float, default=600.0, help="for each server to answer")
    parser.add_argument("engine", nargs="*", help="after --: further options of vllm serve, for both engines")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: pip install vllm", file=sys.stderr)
        return 1

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
        columns = ("marketplace", "policy     ", "requests", "prompt tokens", "not computed", "imported blocks")
        print("  ".join(columns), flush=True)
        for number, shares in enumerate((False, True)):
            run_engines(number * len(POLICIES), kvmd if shares else None, folder, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
