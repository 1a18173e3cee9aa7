#!/usr/bin/env python3
"""Two processes, one model, one prompt prefix: what the marketplace saves, and that the answer stays the same.

    pip install "./client/python[transformers]"
    python client/python/examples/transformers_demo.py

Each process builds the same Llama-shaped model with random weights (nothing is downloaded). The first one
computes a prompt and publishes its KV blocks; the second one gets a prompt with the same beginning, once
without the marketplace and once with it. Uses the node's kvmd if one answers, else starts a private one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from kvclient.daemon import PrivateDaemon, default_socket, is_running
from kvclient.errors import KvError
from kvclient.transformers import Marketplace
from side_process import Process

VOCABULARY = 8192


@dataclass
class Options:
    """What both processes must agree on."""

    socket: str
    device: str
    dtype: str
    layers: int
    hidden: int
    prompt_tokens: int
    new_tokens: int


class FirstToken:
    """A streamer for ``generate()`` that notes when the first new token came."""

    def __init__(self) -> None:
        self.calls = 0
        self.at = 0.0

    def put(self, value: Any) -> None:
        """Called with the prompt, then with each token."""
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        """Called after the last token."""


class Side:
    """One process: a model and its marketplace."""

    def __init__(self, options: Options, name: str) -> None:
        transformers.logging.set_verbosity_error()
        self.options = options
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 3,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64,
            num_key_value_heads=max(1, options.hidden // 256),
            max_position_embeddings=options.prompt_tokens * 2 + options.new_tokens,
            initializer_range=1.5 / options.hidden**0.5,  # logits that depend on the prompt
            bos_token_id=None,
            eos_token_id=None,
        )
        model = transformers.AutoModelForCausalLM.from_config(config)
        self.model = model.to(device=options.device, dtype=getattr(torch, options.dtype)).eval()
        self.market = Marketplace(
            self.model,
            socket_path=options.socket,
            name=f"demo-{name}-{os.getpid()}",
            model_id="demo/random-llama",
            pool_blocks=4 * options.prompt_tokens // 16 + 64,
        )

    def generate(self, tokens: list[int], shared: bool) -> tuple[list[int], float]:
        """Answer to a prompt and time to its first token, in seconds."""
        ids = torch.tensor([tokens], device=self.options.device)
        first = FirstToken()
        settings: dict[str, Any] = {
            "max_new_tokens": self.options.new_tokens,
            "do_sample": False,
            "streamer": first,
            "attention_mask": torch.ones_like(ids),
        }
        start = time.perf_counter()
        output = (self.market if shared else self.model).generate(ids, **settings)
        if shared:
            self.market.region.flush(10.0)
        return output[0, len(tokens) :].tolist(), first.at - start

    def stats(self) -> tuple[dict[str, Any], int]:
        """Counters of the marketplace, and bytes imported."""
        return vars(self.market.stats), self.market.client.stats().bytes_imported


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if gpu else "cpu", help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 256 (default: %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--socket", help="kvmd's socket; default: the node's if it answers, else a private kvmd")
    return parser.parse_args()


def random_tokens(count: int, seed: int) -> list[int]:
    """Token ids, the same for the same seed."""
    tokens = torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    return [int(token) for token in tokens]


def compare(options: Options, publisher: Process, importer: Process) -> bool:
    """Run the comparison and print it. True: the answers are the same."""
    tail = options.prompt_tokens // 16
    prefix = random_tokens(options.prompt_tokens - tail, seed=1)
    prompts = [prefix + random_tokens(tail, seed) for seed in (2, 3)]
    for process in (publisher, importer):  # kernels, allocators: not what is compared
        process.call("generate", random_tokens(options.prompt_tokens, seed=4), False)

    _, computed_s = publisher.call("generate", prompts[0], True)
    without, without_s = importer.call("generate", prompts[1], False)
    together, with_s = importer.call("generate", prompts[1], True)
    stats, imported_bytes = importer.call("stats")
    same = sum(one == other for one, other in zip(without, together, strict=True))

    print(f"prompt                   {options.prompt_tokens:,} tokens, {len(prefix):,} of them shared by both prompts")
    print(f"blocks imported          {stats['blocks_imported']:,} ({imported_bytes / 2**20:.1f} MiB), 0 unvalidated")
    print(f"tokens not recomputed    {stats['reused_tokens']:,} of {options.prompt_tokens:,}")
    print(f"first token, publisher   {computed_s * 1e3:8.1f} ms  (computes and publishes)")
    print(f"first token, without     {without_s * 1e3:8.1f} ms")
    print(f"first token, with        {with_s * 1e3:8.1f} ms  ({without_s / with_s:.1f}x sooner)")
    print(f"parity                   {same} of {len(without)} tokens are the same")
    if not stats["reused_tokens"]:
        print("nothing was shared", file=sys.stderr)
    return same == len(without) and stats["reused_tokens"] > 0


def main() -> int:
    """Run the demonstration; 0 if something was shared and the answers are the same."""
    arguments = parse()
    with ExitStack() as stack:
        socket = arguments.socket or default_socket()
        if arguments.socket or is_running(socket):
            print(f"kvmd                     {socket}")
        else:
            try:
                socket = stack.enter_context(PrivateDaemon()).socket
            except KvError as error:
                sys.exit(f"cannot start a kvmd: {error}")
            print("kvmd                     a private one (none answers on the node's socket)")
        options = Options(
            socket,
            arguments.device,
            arguments.dtype,
            arguments.layers,
            arguments.hidden,
            arguments.prompt_tokens,
            arguments.new_tokens,
        )
        print(f"model                    random Llama, {options.layers} layers of {options.hidden}, ", end="")
        print(f"{options.dtype}, {options.device}; transformers {transformers.__version__}", flush=True)
        processes = [Process(Side, options, name) for name in ("publisher", "importer")]
        for process in processes:
            stack.callback(process.close)
        for process in processes:
            process.answer()
        return 0 if compare(options, processes[0], processes[1]) else 1


if __name__ == "__main__":
    sys.exit(main())
