#!/usr/bin/env python3
"""One vLLM engine in a process of its own, driven from another: the demonstrations' engines.

Run as a program, it is the engine's process: settings, then calls, as JSON lines on standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo_models import SHAPES, model_folder, prompt_of, spread


class Engine:
    """Inside an engine's process."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Start vLLM; in this process, so that nothing is between the clock and the engine."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        # apply_model sends a function to the ranks
        os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        from vllm import LLM

        self.vocabulary = SHAPES[settings["shape"]].config["vocab_size"]
        self.block_tokens = settings["block_tokens"]
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
            tensor_parallel_size=settings["tp"],
            **arguments,
        )
        self.llm.apply_model(spread)

    def _run(self, prompts: list[list[int]], tokens: int) -> list[Any]:
        from vllm import SamplingParams

        sampling = SamplingParams(max_tokens=tokens, temperature=0, detokenize=False, ignore_eos=True)
        return list(self.llm.generate([{"prompt_token_ids": each} for each in prompts], sampling, use_tqdm=False))

    def first_tokens(self, seeds: list[int], tokens: int) -> dict[str, Any]:
        """One request after the other: seconds to the first token, tokens not computed, seconds of the lookup.

        A lookup's are 0 where the connector made none, or has no counters.
        """
        seconds, cached, lookups = [], [], []
        for seed in seeds:
            prompt = prompt_of(seed, tokens, self.vocabulary)
            looked = self.totals().get("find_seconds", 0.0)
            began = time.perf_counter()
            [output] = self._run([prompt], 1)
            seconds.append(time.perf_counter() - began)
            cached.append(output.num_cached_tokens or 0)
            lookups.append(self.totals().get("find_seconds", 0.0) - looked)
        return {"seconds": seconds, "cached": cached, "lookups": lookups}

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

    def herd(self, seed: int, tokens: int, copies: int) -> dict[str, Any]:
        """The same prompt many times at once: seconds until all have their first token, prompt tokens computed."""
        prompt = prompt_of(seed, tokens, self.vocabulary)
        began = time.perf_counter()
        outputs = self._run([prompt] * copies, 1)
        seconds = time.perf_counter() - began
        self.idle()
        # The last block of a prompt is computed for every request
        shared = (tokens - 1) // self.block_tokens * self.block_tokens
        computed = sum(max(shared - (output.num_cached_tokens or 0), 0) for output in outputs)
        return {"seconds": seconds, "computed": computed}

    def forget(self) -> bool:
        """Empty the engine's own prefix cache."""
        return bool(self.llm.reset_prefix_cache())

    def idle(self) -> None:
        """One more step, as a server's engine makes after a request has ended."""
        self.llm.llm_engine.engine_core.engine_core.step_fn()

    def totals(self) -> dict[str, float]:
        """The connector's counters: the scheduler's, and the worker's if it is in this process (one rank)."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler.connector
        totals = dict(scheduler.totals()) if hasattr(scheduler, "totals") else {}
        if totals and has_kv_transfer_group():
            totals |= get_kv_transfer_group().totals()
        return totals


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
                [sys.executable, __file__],
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
        self.answer()
        return self

    def answer(self) -> Any:
        """What the call that was sent first, of those not answered, has returned."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])
            raise SystemExit(f"an engine ended:\n{tail}")
        return json.loads(line)

    def send(self, name: str, *arguments: Any) -> None:
        """Begin a method of Engine there; ``answer`` has what it returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()

    def call(self, name: str, *arguments: Any) -> Any:
        """Run a method of Engine there."""
        self.send(name, *arguments)
        return self.answer()

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    serve()
