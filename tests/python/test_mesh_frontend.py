"""Dynamo's frontend sends requests to the node that has most of the prompt, as kvmd-mesh's events say."""

from __future__ import annotations

import http.server
import importlib.util
import json
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon
from support.described import BLOCK, EVENTS, DescribedWorker
from support.dynamo import DynamoFrontend
from support.mesh import MeshProcess
from support.waiting import eventually

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "client" / "python" / "examples"


class Engine:
    """In place of a vLLM server: answers completions and keeps the prompts it gets, as lists of token ids."""

    def __init__(self) -> None:
        prompts: list[list[int]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompts.append(asked["prompt"])
                usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": 1}
                usage |= {"total_tokens": len(asked["prompt"]) + 1}
                details: dict[str, Any] = {"prompt_tokens_details": {"cached_tokens": 8}}
                choice = {"token_ids": [65], "finish_reason": "length"}
                answer = json.dumps({"choices": [choice], "usage": usage | details}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.prompts = prompts
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Node:
    """A node without its engine's computing: kvmd, kvmd-mesh, a worker that publishes, and ``Engine``."""

    def __init__(self, name: str, start_mesh: Callable[..., MeshProcess]) -> None:
        self.kvmd = PrivateDaemon().start()
        self.mesh = start_mesh(self.kvmd, name, options=EVENTS)
        self.worker = DescribedWorker(self.kvmd, 256)
        self.engine = Engine()
        self._free = 0

    def compute(self, tokens: list[int]) -> None:
        """Publish a prompt's blocks, and tell kvmd-mesh of its tokens, as the vLLM connector does."""
        self.worker.publish(tokens, self._free)
        self._free += len(tokens) // BLOCK
        self.worker.describe(self.mesh, tokens)
        eventually(lambda: self.mesh.status()["events"]["blocks"] == self._free, tries=6000)

    def stop(self) -> None:
        self.worker.close()
        self.engine.stop()
        self.mesh.stop()
        self.kvmd.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    specification = importlib.util.spec_from_file_location("demo_servers", EXAMPLES / "demo_servers.py")
    assert specification is not None
    assert specification.loader is not None
    servers = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(servers)
    folder = tmp_path_factory.mktemp("model")
    servers.write_tokenizer(folder)
    (folder / "template").write_text("{% for each in messages %}{{ each.content }}{% endfor %}")
    return folder


@pytest.fixture
def nodes(start_mesh: Callable[..., MeshProcess]) -> Iterator[list[Node]]:
    started = [Node(name, start_mesh) for name in ("a", "b")]
    yield started
    for node in started:
        node.stop()


@pytest.fixture
def frontend(tmp_path: pathlib.Path, nodes: list[Node], model: pathlib.Path) -> Iterator[DynamoFrontend]:
    started = DynamoFrontend(tmp_path)
    try:
        for node in nodes:
            started.add_worker(node.engine.url, model, node.mesh.status()["events"]["endpoint"], BLOCK)
        started.wait()
        yield started
    finally:
        started.stop()


def text(number: int) -> str:
    """64 characters, so 16 blocks of 4 tokens, that begin like no other number's."""
    return f"{number:03}" + "".join(chr(97 + (number * 7 + i * 3) % 26) for i in range(61))


def tokens(written: str) -> list[int]:
    """As the frontend makes them: the tokenizer counts printable characters from the exclamation mark."""
    return [ord(character) - ord("!") for character in written]


def test_a_request_goes_to_the_node_that_has_its_prompt(nodes: list[Node], frontend: DynamoFrontend) -> None:
    answer = frontend.complete(text(0))
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 8
    assert nodes[0].engine.prompts + nodes[1].engine.prompts == [tokens(text(0))]
    texts = [text(number) for number in range(1, 13)]
    holders = [0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1]
    for each, holder in zip(texts, holders, strict=True):
        nodes[holder].compute(tokens(each))

    def routed() -> list[int]:
        places = []
        for each in texts:
            before = len(nodes[0].engine.prompts)
            frontend.complete(each + "and what comes after it")
            places.append(0 if len(nodes[0].engine.prompts) > before else 1)
        return places

    # Events take their time. By chance it would be so once in 4,096 times.
    eventually(lambda: routed() == holders, tries=30)
