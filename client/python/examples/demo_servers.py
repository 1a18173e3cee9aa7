"""What the examples with servers share: a small random model, and vLLM engines and other servers as processes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
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


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token for each byte, and the model's configuration."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={each: i for i, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def write_model(folder: Path) -> None:
    """A Llama of random weights, with which an answer depends on the whole prompt, and ``write_tokenizer``'s tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tokenizer(folder)
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


class Server:
    """A server's process."""

    def __init__(
        self,
        name: str,
        command: list[str],
        path: str,
        log: Path,
        gpus: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
        listen: tuple[str, str] = ("--host", "--port"),
    ) -> None:
        """Starts it. ``path``: answers once it is ready. ``listen``: its options for address and port."""
        self.name, self.port, self._log = name, free_port(), log
        environment = {**os.environ, **environment, **({"CUDA_VISIBLE_DEVICES": gpus} if gpus else {})}
        if not gpus:
            # Both engines would bind their threads to the same cores, and wait for each other
            environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            # Without it each would take nearly all of the machine's memory
            environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*command, listen[0], "127.0.0.1", listen[1], str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
            )
        self._path = path

    def wait(self, timeout_s: float, ready: Callable[[bytes], bool] = lambda answer: True) -> None:
        """Until it is ready, and says so in a way that ``ready`` takes.

        SystemExit with the end of its log if it ends or takes longer.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self._path}", timeout=5) as answer:
                    if ready(answer.read()):
                        return
            except (urllib.error.URLError, OSError):
                pass
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


def engine(
    place: int, name: str, model: str, connector: dict[str, Any] | None, folder: Path, options: argparse.Namespace
) -> Server:
    """One of two vLLM servers with the same settings: each may publish and import.

    ``place``: 0 or 1; which GPU of ``options.gpus`` is its own. ``connector``: its settings, ``socket`` for one; None:
    without the connector.
    """
    transfer = {
        "kv_connector": "KvMarketConnector",
        "kv_connector_module_path": "kvclient.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": connector,
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
    if connector is not None:
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
    visible = ",".join(dict.fromkeys(reversed(gpus) if place else gpus))
    return Server(name, command, "/health", folder / f"{name}.log", visible)


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with the options of both engines. SystemExit: it is wrong, or there is no vLLM."""
    parser.add_argument("--gpus", default="", help="of the two engines, as 0,1")
    parser.add_argument("--start-timeout-s", type=float, default=600.0, help="for each server to answer")
    parser.add_argument("engine", nargs="*", help="after --: further options of vllm serve, for both engines")
    options = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        sys.exit("vLLM is not installed: pip install vllm")
    return options


def prompt_of(seed: int, length: int) -> str:
    """A text that no other request has."""
    dice = random.Random(seed)
    words = ("cache", "block", "token", "engine", "peer", "prefix", "window", "stream")
    text = ""
    while len(text) < length:
        text += dice.choice(words) + str(dice.randrange(100)) + " "
    return text[:length]
