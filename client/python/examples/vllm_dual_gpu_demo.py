#!/usr/bin/env python3
"""Two vLLM engines, with and without the marketplace: time to first token, throughput, parity.

    pip install ./client/python vllm
    python client/python/examples/vllm_dual_gpu_demo.py --gpus 0,1

Engine A computes prompts; engine B, on the other GPU (the same one if there is only one), gets them next.
Arms (``--arms``): ``off`` without the connector; ``marketplace`` with it, then ``restarted``, with engine B a new
process; ``host-cache`` with a kvmd that keeps blocks in host memory, engine A having ended before B is asked;
``lmcache``, where that is installed: its server with an L1 in pinned memory, both engines connected to it;
``herd``: both engines are asked for the same new prompt at once, many times;
``own-cache``: hits of the engine's own prefix cache with and without the connector, each in ``--processes`` new
processes, since they differ from one process to the next.
Every arm has the same seeds, the same prompts in the same order, the same warm-up, and vLLM's own prefix cache on.
Weights are random: nothing is downloaded. Uses the node's kvmd if one answers, else starts a private one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from demo_arms import Arms
from demo_models import SHAPES

ARMS = ("off", "marketplace", "host-cache", "lmcache", "herd", "own-cache")


def contiguous_bandwidth(gpus: list[str], size: int) -> float:
    """GB/s of one contiguous copy of ``size`` bytes from the first GPU to the second, median of ten; 0 on a CPU."""
    program = (
        "import sys, time, torch\n"
        "a, b, size = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])\n"
        "x = torch.ones(size, dtype=torch.uint8, device=a); y = torch.empty_like(x, device=b)\n"
        "times = []\n"
        "for _ in range(12):\n"
        "    torch.cuda.synchronize(a); torch.cuda.synchronize(b); t = time.perf_counter()\n"
        "    y.copy_(x); torch.cuda.synchronize(a); torch.cuda.synchronize(b); times.append(time.perf_counter() - t)\n"
        "print(size / sorted(times[2:])[5] / 1e9)\n"
    )
    if not gpus[0]:
        return 0.0
    done = subprocess.run(
        [sys.executable, "-c", program, gpus[0], gpus[1], str(size)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gpus", default=None, help="GPU of engine A and of engine B; default 0,1, or 0,0 with one GPU"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default=None, help="default 8b, tiny on a CPU")
    parser.add_argument("--prompt-tokens", type=int, default=None, help="default 8192, 1024 on a CPU")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32, help="of the throughput run, all at once")
    parser.add_argument("--copies", type=int, default=32, help="of the arm herd's prompt, for each engine")
    parser.add_argument("--processes", type=int, default=6, help="of the arm own-cache, with and without")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks of each engine, which share the GPUs")
    parser.add_argument("--kv-bytes", type=int, default=10 << 30, help="KV cache of each engine")
    parser.add_argument("--max-sms", type=int, default=16)
    parser.add_argument("--load", choices=("async", "sync"), default="async")
    parser.add_argument(
        "--kv-pool", choices=("engine", "exportable"), default="engine", help="whose memory the KV caches are in"
    )
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs: starts sooner")
    parser.add_argument("--arms", default="off,marketplace,lmcache", help="separated by commas; default: %(default)s")
    parser.add_argument("--cache-gib", type=int, default=16, help="of the arms host-cache and lmcache")
    parser.add_argument("--json", type=Path, help="write all readings to this file")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: pip install vllm", file=sys.stderr)
        return 1

    from kvclient.daemon import PrivateDaemon, default_socket, is_running

    names = options.arms.split(",")
    if not set(names) <= set(ARMS):
        parser.error(f"--arms: {options.arms}")

    count = int(subprocess.run([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
                               capture_output=True, text=True, check=True).stdout)  # fmt: skip
    gpus = (options.gpus.split(",") if options.gpus else ["0", "1"] if count > 1 else ["0", "0"]) if count else ["", ""]
    options.shape = options.shape or ("8b" if count else "tiny")
    options.prompt_tokens = options.prompt_tokens or (8192 if count else 1024)
    shape = SHAPES[options.shape]
    options.block_tokens = shape.block_tokens or options.block_tokens
    prompt_bytes = (options.prompt_tokens - 1) // options.block_tokens * options.block_tokens * shape.token_bytes
    bandwidth = contiguous_bandwidth(gpus, prompt_bytes)
    readings: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "contiguous_GBps": bandwidth}
    log = Path(tempfile.mkdtemp(prefix="kvclient-demo-")) / "engines.log"

    def keep(read: dict[str, Any]) -> None:
        readings.update(read)
        if options.json:
            options.json.write_text(json.dumps(readings, indent=1))

    with ExitStack() as stack:
        socket = default_socket()
        if not is_running(socket):
            socket = stack.enter_context(PrivateDaemon()).socket
        arms = Arms(options, gpus, socket, log, keep)
        for name in names:
            arms.run(name)
    report(options, gpus, readings, prompt_bytes)
    measured = [reading for reading in readings.values() if isinstance(reading, dict) and "answers" in reading]
    same = all(reading["answers"] == measured[0]["answers"] for reading in measured)
    return 0 if same else 2


def report(options: argparse.Namespace, gpus: list[str], readings: dict[str, Any], prompt_bytes: int) -> None:
    """Print the table."""
    where = "CPU" if not gpus[0] else f"GPU {gpus[0]} to GPU {gpus[1]}"
    size = f"{prompt_bytes / 2**20:.0f} MiB of KV"
    print(f"{options.shape}, {options.prompts} prompts of {options.prompt_tokens} tokens ({size}), {where}")
    print(f"contiguous copy of the same bytes: {readings['contiguous_GBps']:.0f} GB/s")
    heads = [("cold p50", 10), ("p99", 9), ("warm p50", 10), ("p99", 9), ("tokens/s", 10), ("cached", 8), ("MiB", 8)]
    heads += [("GB/s", 7), ("parity", 8)]
    print(f"{'arm':<22}" + "".join(f"{head:>{width}}" for head, width in heads))
    measured = [reading for reading in readings.values() if isinstance(reading, dict) and "answers" in reading]
    first = measured[0] if measured else {}
    for name, reading in readings.items():
        if not isinstance(reading, dict) or "cold" not in reading:
            continue
        cold, warm, counted = reading["cold"]["seconds"], reading["warm"]["seconds"], reading["counted"]
        spent = counted.get("import_seconds", 0)
        moved = counted.get("imported_bytes", 0)
        rate = f"{moved / spent / 1e9:.1f}" if spent else "-"
        speed = f"{statistics.median(reading['throughput']):.0f}" if "throughput" in reading else "-"
        same = sum(a == b for a, b in zip(reading["answers"], first["answers"], strict=True))
        cached = statistics.median(reading["cold"]["cached"])
        print(
            f"{name:<22}{1e3 * percentile(cold, 0.5):>8.1f}ms{1e3 * percentile(cold, 0.99):>7.1f}ms"
            f"{1e3 * percentile(warm, 0.5):>8.1f}ms{1e3 * percentile(warm, 0.99):>7.1f}ms{speed:>10}"
            f"{cached:>8.0f}{moved / 2**20:>8.0f}{rate:>7}{same:>5}/{len(first['answers'])}"
        )
        if counted.get("find_count"):
            print(
                f"    scheduler: find p50 {1e6 * percentile(reading['cold']['lookups'], 0.5):.0f} µs, "
                f"worst {1e6 * max(reading['cold']['lookups']):.0f} µs, "
                f"plan {1e6 * counted['plan_seconds'] / counted['plan_count']:.0f} µs a step; "
                f"import {1e3 * spent / max(counted.get('import_count', 0), 1):.2f} ms a request; "
                f"failed blocks {counted.get('failed_blocks', 0):.0f}"
            )
    for name, reading in readings.items():
        if name.startswith("herd"):
            seconds = statistics.median(max(each["seconds"] for each in pair) for pair in reading["rounds"])
            times = [sum(each["computed"] for each in pair) / options.prompt_tokens for pair in reading["rounds"]]
            print(
                f"{name}: 2 x {options.copies} requests of one prompt, {len(times)} prompts: all first tokens after "
                f"{1e3 * seconds:.0f} ms, computed {max(times):.2f} times at most"
            )
    if "own prefix cache" in readings:
        for name, medians in readings["own prefix cache"].items():
            told = " ".join(f"{1e3 * each:.1f}" for each in sorted(medians))
            print(f"own prefix cache, {name:<12} median {1e3 * statistics.median(medians):.1f} ms of {told}")


if __name__ == "__main__":
    sys.exit(main())
