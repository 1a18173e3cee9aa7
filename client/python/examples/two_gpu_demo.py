#!/usr/bin/env python3
"""KV blocks from the GPU of one process into that of another: how fast, and whether every byte is right.

    pip install "./client/python[torch]"
    python client/python/examples/two_gpu_demo.py

The owner allocates the paged KV tensors of a model of 8 B parameters in exportable memory, fills and publishes
them. The importer finds them in shared memory and imports them into tensors of its own, scattered and adjacent,
next to one contiguous torch copy of as many bytes between the same GPUs in the same run. With one GPU both
processes use it.
Uses the node's kvmd if one answers, else starts a private one. Without a GPU it says so and ends with status 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

import kvclient
import kvclient.torch
from kvclient.daemon import PrivateDaemon, default_socket, is_running
from kvclient.errors import KvError
from side_process import Process

BLOCK_TOKENS, HEADS, HEAD_SIZE = 16, 8, 128
CHUNK_BYTES = BLOCK_TOKENS * HEADS * HEAD_SIZE * 2  # K or V of one layer of one block
WORDS = CHUNK_BYTES // 8


@dataclass
class Options:
    """What both processes must agree on."""

    socket: str
    layers: int
    blocks: int
    rounds: int

    @property
    def total_bytes(self) -> int:
        """Of all blocks."""
        return self.layers * 2 * self.blocks * CHUNK_BYTES


class Side:
    """One process: KV tensors ``[2, blocks, tokens, heads, size]``, bfloat16, one for each layer, and their region."""

    def __init__(self, options: Options, name: str, device: int) -> None:
        self.options = options
        self.device = torch.device("cuda", device)
        torch.cuda.set_device(self.device)
        self.client = kvclient.Client(
            options.socket,
            name=f"demo-{name}-{os.getpid()}",
            devices=[kvclient.torch.device_uuid(device)],
            timeout_s=30.0,
        )
        self.model = self.client.declare_model(
            kvclient.ModelSpec(
                model_id="demo/8b-shaped",
                revision="1",
                kv_dtype="bfloat16",
                layout="NHD",
                num_layers=options.layers,
                num_kv_heads=HEADS,
                head_size=HEAD_SIZE,
                block_tokens=BLOCK_TOKENS,
            ),
            timeout_s=30.0,
        )
        shape = [2, options.blocks, BLOCK_TOKENS, HEADS, HEAD_SIZE]
        self.pool = kvclient.torch.mem_pool(self.device)
        with torch.cuda.use_mem_pool(self.pool):
            self.tensors = [torch.zeros(shape, dtype=torch.bfloat16, device=self.device) for _ in range(options.layers)]
        self.region = kvclient.torch.register_tensors(
            self.client, self.model, self.tensors, 1, name=f"demo-{name}-{os.getpid()}", timeout_s=30.0
        )
        chain = kvclient.KeyChain(self.model)
        self.root = chain.parent
        self.keys = chain.extend([token % 50_000 for token in range(options.blocks * BLOCK_TOKENS)])

    def describe(self) -> str:
        """The GPU, for people."""
        return f"{self.device} {torch.cuda.get_device_name(self.device)} {self.region.device}"

    def expected(self, layer: int) -> torch.Tensor:
        """What the prompt's blocks hold in one layer: int64 ``[2, blocks, WORDS]``, no two words the same."""
        number = torch.arange(2 * self.options.blocks * WORDS, device=self.device).view(2, self.options.blocks, WORDS)
        # The product wraps; the factor is odd, so the mapping stays one to one.
        return (number + layer * number.numel()) * 0x9E3779B97F4A7C1

    def order(self, seed: int) -> torch.Tensor:
        """Where the prompt's blocks lie: all blocks in a random order, int64 ``[blocks]``, on the CPU."""
        return torch.randperm(self.options.blocks, generator=torch.Generator().manual_seed(seed))


class Owner(Side):
    """Computes (here: makes up) the blocks and publishes them."""

    def publish(self, scattered: bool) -> int:
        """All blocks of the prompt, behind the stream that writes them. How many peers may read."""
        blocks = self.order(seed=1) if scattered else torch.arange(self.options.blocks)
        writes = self.region.begin_writes(blocks)
        stream = torch.cuda.current_stream()
        for layer, tensor in enumerate(self.tensors):
            tensor.view(torch.int64).view(2, self.options.blocks, WORDS)[:, blocks.to(self.device)] = self.expected(
                layer
            )
        self.region.publish_on_stream(kvclient.PublishRequests.run(self.keys, self.root, 0, writes), stream.cuda_stream)
        self.region.flush(30.0)
        return sum(self.region.current_generation(int(block)) % 2 == 0 for block in blocks)


class Importer(Side):
    """Imports the blocks, and compares them."""

    def baseline(self, owner_device: int) -> list[float]:
        """Seconds of one contiguous torch copy of as many bytes from the owner's GPU, each round."""
        words = self.options.total_bytes // 8
        source = torch.ones(words, dtype=torch.int64, device=torch.device("cuda", owner_device))
        target = torch.zeros(words, dtype=torch.int64, device=self.device)
        times = []
        for _ in range(self.options.rounds + 1):
            torch.cuda.synchronize(source.device)
            torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            target.copy_(source, non_blocking=True)
            torch.cuda.synchronize(source.device)
            torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return times[1:]

    def fetch(self, scattered: bool) -> dict[str, Any]:
        """Seconds of each round from the lookup to validated blocks; blocks that were wrong after the last one."""
        blocks = self.order(seed=2) if scattered else torch.arange(self.options.blocks)
        finds, times = [], []
        for _ in range(self.options.rounds + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            match = self.client.find(self.keys, destination=self.region, include_own=False)
            middle = time.perf_counter()
            result = self.client.import_blocks(match, self.region, blocks[: len(match)]).wait(60.0)
            times.append(time.perf_counter() - start)
            finds.append(middle - start)
            if result.valid < self.options.blocks:
                why = [each.reason.name for each in result.failed[:1]] or [match.end.name]
                unmapped = [repr(each) for each in self.client.unmapped_regions()]
                return {"valid": result.valid, "why": f"{why[0]} {unmapped}"}
        return {"valid": result.valid, "times": times[1:], "finds": finds[1:], "wrong": self._count_wrong(blocks)}

    def _count_wrong(self, blocks: torch.Tensor) -> int:
        wrong = torch.zeros(self.options.blocks, dtype=torch.bool, device=self.device)
        for layer, tensor in enumerate(self.tensors):
            got = tensor.view(torch.int64).view(2, self.options.blocks, WORDS)[:, blocks.to(self.device)]
            wrong |= (got != self.expected(layer)).any(dim=2).any(dim=0)
            tensor.zero_()  # so that the next import is compared with nothing that was there before
        torch.cuda.synchronize()
        return int(wrong.sum())


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=512, help=f"of {BLOCK_TOKENS} tokens (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=10, help="of each copy; the median is shown (default: %(default)s)"
    )
    parser.add_argument("--owner", type=int, default=0, help="the owner's GPU (default: %(default)s)")
    parser.add_argument("--importer", type=int, help="the importer's; default: 1 if there are two, else the owner's")
    parser.add_argument("--socket", help="kvmd's socket; default: the node's if it answers, else a private kvmd")
    return parser.parse_args()


def compare(options: Options, owner: Process, importer: Process, owner_device: int) -> bool:
    """Run it all and print it. True: every block was imported and right."""

    def rate(times: list[float]) -> str:
        median = statistics.median(times)
        return f"{median * 1e3:8.3f} ms  {options.total_bytes / median / 1e9:7.1f} GB/s"

    right = True
    contiguous = importer.call("baseline", owner_device)
    print(f"torch copy, contiguous   {rate(contiguous)}")
    for scattered, what in ((True, "import, scattered blocks"), (False, "import, adjacent blocks ")):
        published = owner.call("publish", scattered)
        got = importer.call("fetch", scattered)
        if got["valid"] < options.blocks:
            print(f"{what} {got['valid']} of {options.blocks} blocks ({published} published): {got['why']}")
            right = False
            continue
        share = statistics.median(contiguous) / statistics.median(got["times"])
        print(f"{what} {rate(got['times'])}  ({share:.2f}x the copy's rate; lookup and validation included)")
        print(f"  its lookup             {statistics.median(got['finds']) * 1e3:8.3f} ms")
        print(f"  compared               {options.blocks} blocks, {got['wrong']} wrong")
        right = right and got["wrong"] == 0
    return right


def main() -> int:
    """Run the demonstration; 0 if every block was imported and right, or if there is no GPU."""
    arguments = parse()
    if not torch.cuda.is_available():
        print("skipped: no GPU (torch.cuda.is_available() is false); transformers_demo.py shows sharing without one")
        return 0
    other = arguments.importer
    if other is None:
        other = 1 if torch.cuda.device_count() > 1 and arguments.owner == 0 else arguments.owner
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
        options = Options(socket, arguments.layers, arguments.blocks, arguments.rounds)
        owner = Process(Owner, options, "owner", arguments.owner)
        stack.callback(owner.close)
        importer = Process(Importer, options, "importer", other)
        stack.callback(importer.close)
        owner.answer()
        importer.answer()
        print(f"owner                    {owner.call('describe')}")
        print(f"importer                 {importer.call('describe')}", flush=True)
        if other == arguments.owner:
            print("                         the same GPU twice: what follows is a copy within one GPU, not between two")
        shape = f"[2, {options.blocks}, {BLOCK_TOKENS}, {HEADS}, {HEAD_SIZE}]"
        print(f"KV                       {options.layers} tensors {shape} bfloat16, ", end="")
        print(f"{options.blocks * BLOCK_TOKENS:,} tokens, {options.total_bytes / 2**30:.2f} GiB, ", end="")
        print(f"chunks of {CHUNK_BYTES >> 10} KiB", flush=True)
        return 0 if compare(options, owner, importer, arguments.owner) else 1


if __name__ == "__main__":
    sys.exit(main())
