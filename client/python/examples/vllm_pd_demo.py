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
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "float32",
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "vocab_size": 258,
    "max_position_embeddings": 4096,
}


def write_model(folder: Path) -> None:
    """A Llama of random weights, with which an answer depends on the whole prompt, and one token for each byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.5 / weight.shape[-1] ** 0.5)
    model.save_pretrained(folder)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(port: int, body: dict[str, Any]) -> dict[str, Any]:
    """One completion of the server on ``port``."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(json.load(answer))


class Server:
    """A server's process."""

    def __init__(self, name: str, command: list[str], path: str, log: Path, gpus: str = "") -> None:
        """Starts it. ``path``: answers once it is ready."""
        self.name, self.port, self._log = name, free_port(), log
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {})}
        if not gpus:
            # Both engines would bind their threads to the same cores, and wait for each other
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            # Without it each would take nearly all of the machine's memory
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        self._path = path

    def wait(self, timeout_s: float) -> None:
        """Until it is ready; SystemExit with the end of its log if it ends or takes longer."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self._path}", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        lines = self._log.read_text(errors="replace").splitlines()
        # The cause is told long before the end, by the engine's own process
        errors = [line for line in lines if "Error: " in line]
        told = "\n".join(dict.fromkeys([*errors[:5], *lines[-10:]]))
        raise SystemExit(f"the {self.name} server does not answer:\n{told}")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def engine(name: str, model: str, kvmd: str | None, folder: Path, options: argparse.Namespace) -> Server:
    """A vLLM server with the connector. Both engines have the same settings: each may publish and import.

    ``kvmd``: its socket; None: without the connector.
    """
    transfer = {
        "kv_connector": "KvMarketConnector",
        "kv_connector_module_path": "kvclient.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": kvmd},
    }
    # Not "vllm serve": vLLM's build for CPUs has no such command
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += [
        "--served-model-name",
        "demo",
        "--enable-prompt-tokens-details",
        # In 16 bits, a cached and a computed prefix may differ in last bits, and so in what follows
        *(() if options.model else ("--dtype", "float32")),
    ]
    if kvmd is not None:
        command += ["--kv-transfer-config", json.dumps(transfer)]
    # Its own GPU first, then the peer's, which it must see to map its memory
    gpus = options.gpus.split(",")
    if len(set(gpus)) == 1:
        # Both engines are on it. (Of an option that is given twice, vLLM takes the last.)
        command += ["--gpu-memory-utilization", "0.4"]
        if gpus[0]:
            # On a GPU that share is what all processes use
            command += ["--kv-cache-memory-bytes", str(2 << 30)]
    command += options.engine
    visible = ",".join(dict.fromkeys(gpus if name == "prefill" else reversed(gpus)))
    return Server(name, command, "/health", folder / f"{name}.log", visible)


def prompt_of(seed: int, length: int) -> str:
    """A text that no other request has."""
    dice = random.Random(seed)
    words = ("cache", "block", "token", "engine", "peer", "prefix", "window", "stream")
    text = ""
    while len(text) < length:
        text += dice.choice(words) + str(dice.randrange(100)) + " "
    return text[:length]


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
    parser.add_argument("--gpus", default="", help="of the prefill and the decode engine, as 0,1")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--prompt-length", type=int, default=1500, help="characters")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--start-timeout-s", type=float, default=600.0, help="for each server to answer")
    parser.add_argument("engine", nargs="*", help="after --: further options of vllm serve, for both engines")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed: pip install vllm", file=sys.stderr)
        return 1
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
        for name in ("prefill", "decode"):
            servers.append(engine(name, model, kvmd, folder, options))
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
