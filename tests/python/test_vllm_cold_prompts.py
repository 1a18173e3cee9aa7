"""Many requests of one cold prompt in two real engines at once: how often its blocks are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon
from support.forked_worker import ForkedWorker
from support.vllm_engines import ENGINE, prompt
from support.vllm_worker import BLOCK
from support.worker import Worker

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)

# Two steps' worth of tokens (max_num_batched_tokens is 256)
LENGTH = 480
# The last token is computed in any case, and with it its block
FULL = (LENGTH - 1) // BLOCK * BLOCK
REQUESTS = 8  # in each engine


@pytest.fixture(params=[0.0, 60.0], ids=["without waits", "waiting for each other"])
def engines(request: Any) -> Iterator[tuple[float, list[Worker]]]:
    """How long a request waits for another engine that computes its blocks, and two engines."""
    with ExitStack() as ending:
        kvmd = ending.enter_context(PrivateDaemon())
        workers = []
        for _ in range(2):
            options = {"wait_for_computing_s": request.param}
            workers.append(ForkedWorker(ENGINE, kvmd.socket, 100, options))
            ending.callback(workers[-1].stop)
        yield request.param, workers


def test_a_cold_prompt_is_computed_once_by_each_engine_or_once_in_all(
    engines: tuple[float, list[Worker]],
) -> None:
    """Of tokens in full blocks. vLLM finds a block for other requests of the same engine once a step computes it."""
    wait_s, workers = engines
    for seed in range(3):
        ids = prompt(LENGTH, seed=seed)
        calls = [worker.start("generate", [ids] * REQUESTS, 8) for worker in workers]
        results = [call() for call in calls]
        [answer] = {tuple(tokens) for result in results for tokens, _ in result}
        assert len(answer) == 8
        computed = sum(FULL - min(cached, FULL) for result in results for _, cached in result)
        assert FULL <= computed <= (FULL if wait_s else 2 * FULL), (seed, computed)
