"""Real engines of several workers: tensor-parallel ranks, and stages of a pipeline that hold different layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvclient.daemon import PrivateDaemon
from support.vllm_engines import ENGINE, prompt
from support.vllm_worker import BLOCK
from support.worker import Worker

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/python_env.sh --vllm)")


#: The first stage holds two layers, the second one.
MODEL = {"num_hidden_layers": 3}
FOUR_WORKERS = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "distributed_executor_backend": "fork"}


def test_engines_of_two_ranks_in_each_of_two_unequal_stages_share(
    kvmd: PrivateDaemon, start_worker: Callable[..., Worker]
) -> None:
    first, second = (start_worker(ENGINE, kvmd.socket, 60, {}, MODEL, FOUR_WORKERS) for _ in range(2))
    assert first.call("reason") == second.call("reason") == ""
    prompts = [prompt(203), prompt(130, seed=1)]
    alone = {"kvmarket": False}
    expected = [tokens for tokens, _ in second.call("generate", prompts, 12, params=alone)]
    assert expected[0] != expected[1]
    second.call("reset_prefix_cache")
    # The first step after a reset looks nothing up
    second.call("generate", [prompt(20, seed=2)], 1)
    assert first.call("generate", prompts, 12) == [(tokens, 0) for tokens in expected]
    first.call("idle_step")
    assert second.call("generate", prompts, 12) == [(expected[0], 6 * BLOCK), (expected[1], 4 * BLOCK)]
