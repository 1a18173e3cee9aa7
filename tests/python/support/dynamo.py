"""The KV indexer of Dynamo, a router's view of who holds which prefix: from PyPI, in a process of its own."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest

from support.waiting import eventually


def dynamo_python() -> str:
    """The Python of the environment that scripts/python_env.sh --routers makes."""
    python = pathlib.Path(os.environ.get("KVM_DYNAMO_ENV") or "/nonexistent") / "bin" / "python"
    if not python.is_file():
        pytest.skip("Dynamo's indexer is not installed (scripts/python_env.sh --routers)")
    return str(python)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DynamoIndexer:
    """``python -m dynamo.indexer``."""

    def __init__(self, log: pathlib.Path) -> None:
        self._port = _free_port()
        self.log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [dynamo_python(), "-m", "dynamo.indexer", "--port", str(self._port), "--threads", "1"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "RUST_LOG": "info", "PYTHONPATH": ""},
            )
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
