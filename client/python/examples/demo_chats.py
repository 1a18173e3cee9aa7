"""A chat workload for the examples with routers: conversations that begin alike, and what of them was not computed."""

from __future__ import annotations

import argparse
import json
import random
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from demo_servers import Server, prompt_of

TEMPLATE = "{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}assistant:"


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
        for number, turn in enumerate(conversations(arm, options)):
            if number:
                time.sleep(options.pause_s)
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The workload's options."""
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--systems", type=int, default=4, help="different system prompts")
    parser.add_argument("--system-length", type=int, default=600, help="characters")
    parser.add_argument("--turn-length", type=int, default=200, help="characters")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--pause-s", type=float, default=0.0, help="between an answer and the conversation's next turn")


def print_heading() -> None:
    """Above the lines of all arms."""
    columns = ("marketplace", "policy     ", "requests", "prompt tokens", "not computed", "imported blocks")
    print("  ".join(columns), flush=True)


def measure(shares: str, policy: str, port: int, servers: list[Server], arm: int, options: argparse.Namespace) -> None:
    """Send the workload to the router on ``port`` and print the arm's line. ``arm``: a number of its own."""
    before = imported(servers)
    requests, tokens, cached = run_arm(port, arm, options)
    print(
        f"{shares:11}  {policy:11}  {requests:8}  {tokens:13,}  {cached:12,}  {imported(servers) - before:15,}"
        f"   {cached / tokens:.1%}",
        flush=True,
    )
