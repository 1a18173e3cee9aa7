#!/usr/bin/env python3
"""Prefill and decode in two vLLM engines of one node: the decode engine finds the prefill engine's blocks by content.

    pip install ./client/python vllm
    python client/python/examples/vllm_pd_demo.py
    python client/python/examples/vllm_pd_demo.py --proxy toy_proxy_server.py

A proxy for prefill/decode disaggregation calls twice: the prefill engine with ``max_tokens`` 1, then the decode engine
with the request as it came, and with what the first one has answered in ``kv_transfer_params``. For the connector that
is no more than how many tokens are about to be found. Proxies that call in this order work unmodified: vLLM's
tests/v1/kv_connector/nixl_integration/toy_proxy_server.py for one. Without ``--proxy``, this program makes the calls.
The prefill engine then computes each answer alone, and the decode engine gets another prompt of the same length, which
it has to compute.
The model is a small random one unless ``--model`` names another. Uses the node's kvmd if one answers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo_servers import Server, engine, parse_options, prompt_of, write_model


def post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    """One completion of the server on ``port``."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(json.load(answer))


def figures(answer: dict[str, Any]) -> tuple[str, int, int]:
    """The answer's text, the prompt's tokens, and how many of them were not computed."""
    usage = answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return answer["choices"][0]["text"], usage["prompt_tokens"], cached


def run(prefill: Server, decode: Server, proxy: Server | None, options: argparse.Namespace) -> int:
    """Send the requests and print what came of them; 1 if an answer differs."""
    rows, same = [], 0
    for seed in range(options.prompts):
        body = {"model": "demo", "prompt": prompt_of(seed, options.prompt_length), "temperature": 0, "ignore_eos": True}
        whole = {**body, "max_tokens": options.new_tokens}
        began = time.perf_counter()
        if proxy is not None:
            answer = post(proxy.port, whole)
        else:
            asked = {**body, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
            given = post(prefill.port, asked).get("kv_transfer_params")
            answer = post(decode.port, {**whole, **({"kv_transfer_params": given} if given else {})})
        both = time.perf_counter() - began
        text, tokens, cached = figures(answer)
        # The prefill engine goes on alone with a request that keeps out of the marketplace
        expected, _, _ = figures(post(prefill.port, {**whole, "kv_transfer_params": {"kvmarket": False}}))
        same += text == expected
        other = {**whole, "prompt": prompt_of(1000 + seed, options.prompt_length)}
        alone = time.perf_counter()
        post(decode.port, other)
        rows.append((both, time.perf_counter() - alone, tokens, cached))
    print(f"{'request':8} {'prompt tokens':>13} {'not computed':>13} {'both engines':>13} {'decode alone':>13}")
    for index, (both, computed, tokens, cached) in enumerate(rows):
        print(f"{index:<8} {tokens:13,} {cached:13,} {both * 1000:10.1f} ms {computed * 1000:10.1f} ms")
    found, wanted = sum(row[3] for row in rows), sum(row[2] for row in rows)
    print(f"decode engine            {found:,} of {wanted:,} prompt tokens not computed")
    print(f"parity                   {same} of {len(rows)} answers are the same")
    return 0 if same == len(rows) else 1


def main() -> int:
    """Start kvmd, two engines and the proxy; send the requests; end them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", help="a proxy of vLLM's with --prefiller-port and --decoder-port")
    parser.add_argument("--model", help="folder or name; default a small random one")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt-length", type=int, default=1500, help="characters")
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parse_options(parser)
    if importlib.util.find_spec("torch") and not options.gpus:
        import torch

        count = torch.cuda.device_count()
        options.gpus = "0,1" if count > 1 else "0" if count else ""

    from kvclient.daemon import PrivateDaemon, default_socket, is_running

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end as well
    with ExitStack() as ending:
        kvmd = default_socket()
        if not is_running(kvmd):
            kvmd = ending.enter_context(PrivateDaemon()).socket
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="kvclient-pd-")))
        model = options.model
        if model is None:
            write_model(folder / "model")
            model = str(folder / "model")
        servers = []
        for place, name in enumerate(("prefill", "decode")):
            servers.append(engine(place, name, model, {"socket": kvmd}, folder, options))
            ending.callback(servers[-1].stop)
        for server in servers:
            server.wait(options.start_timeout_s)
        proxy = None
        if options.proxy:
            command = [sys.executable, options.proxy]
            for role, server in zip(("prefiller", "decoder"), servers, strict=True):
                command += [f"--{role}-host", "127.0.0.1", f"--{role}-port", str(server.port)]
            proxy = Server("proxy", command, "/healthcheck", folder / "proxy.log")
            ending.callback(proxy.stop)
            proxy.wait(options.start_timeout_s)
        return run(*servers, proxy, options)


if __name__ == "__main__":
    sys.exit(main())
