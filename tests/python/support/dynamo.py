"""Dynamo from PyPI, each part in a process of its own: its KV indexer, its frontend, a worker for an engine."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from support.waiting import eventually


def dynamo_python() -> str:
    """The Python of the environment that scripts/python_env.sh --routers makes."""
    python = pathlib.Path(os.environ.get("KVM_DYNAMO_ENV") or "/nonexistent") / "bin" / "python"
    if not python.is_file():
        pytest.skip("Dynamo is not installed (scripts/python_env.sh --routers)")
    return str(python)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(arguments: Sequence[str], log: pathlib.Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("w") as output:
        return subprocess.Popen(
            [dynamo_python(), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RUST_LOG": "info", "PYTHONPATH": "", **environment},
        )


class DynamoIndexer:
    """``python -m dynamo.indexer``."""

    def __init__(self, log: pathlib.Path) -> None:
        self._port = _free_port()
        self.log = log
        self._process = _start(["-m", "dynamo.indexer", "--port", str(self._port), "--threads", "1"], log, {})
        eventually(self._answers, tries=6000)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/workers", timeout=5):
                return True
        except OSError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def register(self, instance: int, events: dict[str, Any], model: str, block_tokens: int) -> None:
        """``events``: of kvmd-mesh's status."""
        self._post(
            "/register",
            {
                "instance_id": instance,
                "endpoint": events["endpoint"],
                "replay_endpoint": events["replay_endpoint"],
                "model_name": model,
                "block_size": block_tokens,
            },
        )

    def matched(self, model: str, tokens: Sequence[int]) -> dict[int, int]:
        """How many leading tokens each instance has in host memory; instances without any are left out."""
        instances = self._post("/query", {"model_name": model, "token_ids": list(tokens)})["instances"]
        return {int(each): found["cpu"] for each, found in instances.items() if found["cpu"]}

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class DynamoFrontend:
    """``python -m dynamo.frontend``, which routes by events, and the example's workers for engines."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder, self._port = folder, _free_port()
        self._environment = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(folder / "workers")}
        self._workers: list[subprocess.Popen[bytes]] = []
        command = ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(self._port)]
        self._process = _start([*command, "--router-mode", "kv"], folder / "frontend.log", self._environment)

    def add_worker(self, server: str, model: pathlib.Path, events: str, block_tokens: int) -> None:
        """A worker for the server at this URL, whose node's kvmd-mesh publishes events at ``events``.

        ``model``: a folder with a tokenizer and a file ``template`` for chats.
        """
        example = pathlib.Path(__file__).resolve().parents[3] / "client" / "python" / "examples" / "dynamo_worker.py"
        arguments = [str(example), "--server", server, "--model", str(model), "--events", events]
        arguments += ["--block-tokens", str(block_tokens), "--chat-template", str(model / "template")]
        log = self._folder / f"worker{len(self._workers)}.log"
        self._workers.append(_start(arguments, log, self._environment))

    def wait(self) -> None:
        """Until the frontend knows all workers and their model."""

        def known() -> bool:
            instances = self._get("/health").get("instances", [])
            found = [each for each in instances if each["endpoint"] == "generate"]
            return len(found) == len(self._workers) and len(self._get("/v1/models").get("data", [])) == 1

        eventually(known, tries=6000)

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
                return dict(json.loads(answer.read()))
        except OSError:
            return {}

    def complete(self, prompt: str) -> dict[str, Any]:
        """The answer of OpenAI's interface for completions."""
        body = {"model": "demo", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.loads(answer.read()))

    def stop(self) -> None:
        for process in (*self._workers, self._process):
            process.kill()
            process.communicate()
