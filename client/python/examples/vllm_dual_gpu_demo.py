#!/usr/bin/env python3
"""Two vLLM engines, with and without the marketplace: time to first token, throughput, parity.

    pip install ./client/python vllm
    python client/python/examples/vllm_dual_gpu_demo.py --gpus 0,1

Engine A computes prompts; engine B, on the other GPU (the same one if there is only one), gets them next.
Arms (``--arms``): ``off`` without the connector; ``marketplace`` with it, then ``restarted``, with engine B a new
process; ``host-cache`` with a kvmd that keeps blocks in host memory, engine A having ended before B is asked;
``lmcache``, where that is installed: its server with an L1 in pinned memory, both engines connected to it.
Every arm has the same seeds, the same prompts in the same order, the same warm-up, and vLLM's own prefix cache on.
Weights are random: nothing is downloaded. Uses the node's kvmd if one answers, else starts a private one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import socket as sockets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SHAPES = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 2048,
    },
}


def model_folder(shape: str, max_tokens: int) -> str:
    """A folder with the configuration of a Llama of that shape, the same path for the same configuration."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "max_position_embeddings": max_tokens,
        **SHAPES[shape],
    }
    folder = Path(tempfile.gettempdir()) / f"kvclient-demo-{shape}-{max_tokens}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def prompt_of(seed: int, tokens: int, vocabulary: int) -> list[int]:
    """A prompt that no other process has."""
    dice = random.Random(seed)
    return [dice.randrange(10, vocabulary) for _ in range(tokens)]


def spread(model: Any) -> None:
    """Weights with which logits depend on the whole prompt; vLLM's dummy ones are within 0.001 of zero."""
    import torch

    for _, weight in sorted(model.named_parameters()):
        if weight.dim() > 1:
            generator = torch.Generator(weight.device).manual_seed(5)
            weight.data.normal_(0, 0.02, generator=generator)


class Engine:
    """Inside an engine's process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Start vLLM; in this process, so that nothing is between the clock and the engine."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from vllm import LLM

        self.vocabulary = SHAPES[settings["shape"]]["vocab_size"]
        arguments: dict[str, Any] = {}
        if settings["connector"]:
            arguments["kv_transfer_config"] = settings["connector"]
        if settings["kv_bytes"]:
            arguments["kv_cache_memory_bytes"] = settings["kv_bytes"]
            arguments["gpu_memory_utilization"] = settings["memory"]
        self.llm = LLM(
            model=model_folder(settings["shape"], settings["max_tokens"]),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=settings["max_tokens"],
            max_num_batched_tokens=settings["max_tokens"],
            enforce_eager=settings["eager"],
            enable_prefix_caching=True,
            disable_log_stats=True,
            block_size=settings["block_tokens"],
            **arguments,
        )
        self.llm.apply_model(spread)

    def _run(self, prompts: list[list[int]], tokens: int) -> list[Any]:
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=tokens, temperature=0, detokenize=False, ignore_eos=True)
        return self.llm.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False)

    def first_tokens(self, seeds: list[int], tokens: int) -> dict[str, Any]:
        """One request after the other: seconds to the first token, tokens that were not computed."""
        seconds, cached = [], []
        for seed in seeds:
            prompt = prompt_of(seed, tokens, self.vocabulary)
            began = time.perf_counter()
            [output] = self._run([prompt], 1)
            seconds.append(time.perf_counter() - began)
            cached.append(output.num_cached_tokens or 0)
        return {"seconds": seconds, "cached": cached}

    def answers(self, seeds: list[int], tokens: int, new_tokens: int) -> list[list[int]]:
        """What follows each prompt, greedily."""
        prompts = [prompt_of(seed, tokens, self.vocabulary) for seed in seeds]
        return [list(self._run([prompt], new_tokens)[0].outputs[0].token_ids) for prompt in prompts]

    def throughput(self, seeds: list[int], tokens: int, new_tokens: int) -> float:
        """Tokens per second, prompts and answers, of unrelated requests all at once."""
        prompts = [prompt_of(seed, tokens, self.vocabulary) for seed in seeds]
        began = time.perf_counter()
        self._run(prompts, new_tokens)
        return len(seeds) * (tokens + new_tokens) / (time.perf_counter() - began)

    def forget(self) -> bool:
        """Empty the engine's own prefix cache."""
        return bool(self.llm.reset_prefix_cache())

    def idle(self) -> None:
        """One more step, as a server's engine makes after a request has ended."""
        self.llm.llm_engine.engine_core.engine_core.step_fn()

    def totals(self) -> dict[str, float]:
        """The connector's counters, both sides; empty without it."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        if not has_kv_transfer_group() or not hasattr(get_kv_transfer_group(), "totals"):
            return {}
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler.connector
        return {**scheduler.totals(), **get_kv_transfer_group().totals()}


def serve() -> None:
    """An engine's process: settings, then calls, as JSON lines on standard input; answers on another descriptor."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output too
    engine = Engine(json.loads(sys.stdin.readline()))
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(engine, name)(*arguments)) + "\n")
        answers.flush()


class Remote:
    """An engine's process, from outside."""

    def __init__(self, gpu: str, settings: dict[str, Any], log: Path) -> None:
        """Starts it; ``ready`` waits until it serves. ``gpu``: for CUDA_VISIBLE_DEVICES, empty for a CPU."""
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu} if gpu else dict(os.environ)
        self._log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()

    def ready(self) -> Remote:
        """Wait until it has started."""
        self._answer()
        return self

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
            raise SystemExit(f"an engine ended:\n{tail}")
        return json.loads(line)

    def call(self, name: str, *arguments: Any) -> Any:
        """Run a method of Engine there."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def visible(gpus: list[str], engine: int) -> str:
    """CUDA_VISIBLE_DEVICES of an engine: its own GPU first, then its peer's, which it must see to map its memory."""
    return ",".join(dict.fromkeys([gpus[engine], *gpus])) if gpus[engine] else ""


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


def market_config(socket: str, options: argparse.Namespace) -> dict[str, Any]:
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
    parser.add_argument("--requests", type=int, default=32, help="of the throughput run")
    parser.add_argument("--kv-bytes", type=int, default=10 << 30, help="KV cache of each engine")
    parser.add_argument("--max-sms", type=int, default=16)
    parser.add_argument("--load", choices=("async", "sync"), default="async")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs: starts sooner")
    parser.add_argument("--arms", default="off,marketplace,lmcache", help="separated by commas; default: %(default)s")
    parser.add_argument("--cache-gib", type=int, default=16, help="of the arms host-cache and lmcache")
    parser.add_argument("--json", type=Path, help="write all readings to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: pip install vllm", file=sys.stderr)
        return 1

    from kvclient.daemon import PrivateDaemon, default_socket, is_running

    arms = options.arms.split(",")
    if not set(arms) <= {"off", "marketplace", "host-cache", "lmcache"}:
        parser.error(f"--arms: {options.arms}")

    count = int(subprocess.run([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"],
                               capture_output=True, text=True, check=True).stdout)  # fmt: skip
    gpus = (options.gpus.split(",") if options.gpus else ["0", "1"] if count > 1 else ["0", "0"]) if count else ["", ""]
    options.shape = options.shape or ("8b" if count else "tiny")
    options.prompt_tokens = options.prompt_tokens or (8192 if count else 1024)
    shape = SHAPES[options.shape]
    token_bytes = 2 * 2 * shape["num_key_value_heads"] * shape["head_dim"] * shape["num_hidden_layers"]
    prompt_bytes = (options.prompt_tokens - 1) // options.block_tokens * options.block_tokens * token_bytes
    bandwidth = contiguous_bandwidth(gpus, prompt_bytes)
    readings: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "contiguous_GBps": bandwidth}
    log = Path(tempfile.mkdtemp(prefix="kvclient-demo-")) / "engines.log"

    with ExitStack() as stack:
        socket = default_socket()
        if not is_running(socket):
            socket = stack.enter_context(PrivateDaemon()).socket
        settings = {
            "shape": options.shape,
            "max_tokens": options.prompt_tokens + 256,
            "eager": options.eager,
            "kv_bytes": options.kv_bytes if count else 0,
            "memory": 0.45 if gpus[0] == gpus[1] else 0.9,
            "block_tokens": options.block_tokens,
            "connector": None,
        }
        seeds = list(range(1000, 1000 + options.prompts))
        unrelated = list(range(5000, 5000 + options.requests))
        length = max(64, options.prompt_tokens // 8)

        def warm_up(engine: Remote) -> None:
            engine.call("first_tokens", [1, 2, 3], options.prompt_tokens)
            engine.call("throughput", list(range(100, 100 + options.requests)), length, 8)
            engine.call("answers", [1], 64, options.new_tokens)

        def throughput(engine: Remote) -> list[float]:
            return [
                engine.call("throughput", [seed + 10_000 * run for seed in unrelated], length, 16) for run in range(3)
            ]

        def arm(name: str, connector: dict[str, Any] | None, kept_in: str = "") -> None:
            """Engine A computes the prompts, then engine B is measured; then B starts anew and is measured again.

            ``kept_in``: the socket of a kvmd whose host cache gets all of A's blocks before A ends.
            """
            chosen = {**settings, "connector": connector}
            a, b = Remote(visible(gpus, 0), chosen, log), Remote(visible(gpus, 1), chosen, log)
            a.ready()
            b.ready()
            warm_up(a)
            warm_up(b)
            readings[name] = {"throughput": throughput(b)}
            b.call("forget")
            a.call("forget")
            a.call("first_tokens", seeds, options.prompt_tokens)
            a.call("idle")
            if kept_in:
                wait_until_kept(kept_in)
                a.stop()
            time.sleep(0.5)
            readings[name] |= measure(b, options, seeds)
            b.stop()
            if connector is not None:
                b = Remote(visible(gpus, 1), chosen, log).ready()
                # Kernels are loaded; no prompt of the arm has been seen
                b.call("first_tokens", [1], 64)
                readings["restarted" if name == "marketplace" else f"{name} restarted"] = measure(b, options, seeds)
                b.stop()
            if not kept_in:
                a.stop()

        for name in arms:
            if name == "off":
                arm(name, None)
            elif name == "marketplace":
                arm(name, market_config(socket, options))
            elif name == "host-cache":
                with PrivateDaemon(["--host-cache", f"{options.cache_gib}G"]) as daemon:
                    arm(name, market_config(daemon.socket, options), kept_in=daemon.socket)
            elif importlib.util.find_spec("lmcache") is not None:
                with lmcache_server(options.cache_gib, log) as connector:
                    arm(name, connector)
    if options.json:
        options.json.write_text(json.dumps(readings, indent=1))
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
    heads = ("cold p50", 10), ("p99", 9), ("warm p50", 10), ("p99", 9), ("tokens/s", 10), ("cached", 8), ("MiB", 8)
    heads += ("GB/s", 7), ("parity", 8)
    print(f"{'arm':<22}" + "".join(f"{head:>{width}}" for head, width in heads))
    first = next(reading for reading in readings.values() if isinstance(reading, dict) and "answers" in reading)
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
                f"    scheduler: find {1e6 * counted['find_seconds'] / counted['find_count']:.0f} µs a request, "
                f"plan {1e6 * counted['plan_seconds'] / counted['plan_count']:.0f} µs a step; "
                f"import {1e3 * spent / max(counted.get('import_count', 0), 1):.2f} ms a request; "
                f"failed blocks {counted.get('failed_blocks', 0):.0f}"
            )


if __name__ == "__main__":
    sys.exit(main())
