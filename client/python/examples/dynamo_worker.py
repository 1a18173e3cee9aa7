#!/usr/bin/env python3
"""A worker of Dynamo's for a vLLM server, whose node's kvmd-mesh says what the node holds.

    python dynamo_worker.py --server http://127.0.0.1:8000 --model FOLDER --block-tokens 16 --events tcp://127.0.0.1:5557

Dynamo's frontend tokenizes each request and chooses a worker; this one sends the tokens on to the server
(``/v1/completions``) and returns the answer as a whole. It follows kvmd-mesh's events (``kvmd-mesh --events``), from
which the frontend learns which prefixes are on this node. Runs with the packages ``ai-dynamo-runtime``, ``pydantic``
and ``uvloop``; ``DYN_DISCOVERY_BACKEND`` and ``DYN_FILE_KV`` say where the frontend is found, as for all of Dynamo.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

from dynamo.llm import KvEventPublisher, ModelInput, ModelRuntimeConfig, ModelType, WorkerType, register_model
from dynamo.runtime import DistributedRuntime

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty")
STOPPING = ("max_tokens", "min_tokens", "ignore_eos", "stop")


def completion(server: str, request: dict[str, Any]) -> dict[str, Any]:
    """What the server answers to a request as Dynamo's frontend makes it, in the form that the frontend expects."""
    body: dict[str, Any] = {"model": "demo", "prompt": request["token_ids"], "return_token_ids": True}
    for names, values in ((SAMPLING, request.get("sampling_options")), (STOPPING, request.get("stop_conditions"))):
        body.update({name: values[name] for name in names if values and values.get(name) is not None})
    sent = urllib.request.Request(
        f"{server}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(sent, timeout=600) as answer:
        read = json.load(answer)
    choice = read["choices"][0]
    return {
        "token_ids": choice["token_ids"],
        "finish_reason": choice["finish_reason"],
        "completion_usage": read["usage"],
    }


async def serve(options: argparse.Namespace) -> None:
    """Register the server as a worker, and hand requests on until the process ends."""
    runtime = DistributedRuntime(asyncio.get_running_loop(), os.environ.get("DYN_DISCOVERY_BACKEND", "etcd"), "tcp")
    endpoint = runtime.endpoint("demo.vllm.generate")
    configuration = ModelRuntimeConfig()
    configuration.total_kv_blocks = options.blocks
    configuration.kv_event_publishing_enabled = options.events is not None
    configuration.enable_local_indexer = options.events is not None

    async def generate(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield await asyncio.to_thread(completion, options.server, request)

    publisher = None
    if options.events is not None:
        publisher = KvEventPublisher(
            endpoint,
            kv_block_size=options.block_tokens,
            zmq_endpoint=options.events,
            zmq_topic="",
            enable_local_indexer=True,
        )
    serving = asyncio.ensure_future(endpoint.serve_endpoint(generate, graceful_shutdown=False))
    await register_model(
        ModelInput.Tokens,
        ModelType.Chat | ModelType.Completions,
        endpoint,
        options.model,
        "demo",
        worker_type=WorkerType.Aggregated,
        kv_cache_block_size=options.block_tokens,
        runtime_config=configuration,
        custom_template_path=options.chat_template,
    )
    print(f"worker {endpoint.connection_id()} for {options.server}", flush=True)
    await serving
    del publisher  # follows the events until here


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="URL of the vLLM server, which calls its model demo")
    parser.add_argument("--model", required=True, help="folder with the tokenizer")
    parser.add_argument("--chat-template", help="file; default the model's")
    parser.add_argument("--events", help="endpoint of kvmd-mesh --events; default: no events")
    parser.add_argument("--block-tokens", type=int, required=True, help="tokens a block, as the engine has")
    parser.add_argument("--blocks", type=int, default=4096, help="how many the engine has")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
