"""Which model runner an engine has, and a call before it touches any block.

vLLM's V2 runner can't recover from a failed load that its step waits for. It also zeroes new blocks and copies blocks
(``update_requests``) before it calls the connector's ``handle_preemptions``, which the V1 runner calls first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from kvclient.errors import UnsupportedError


def uses_v2_runner(vllm_config: Any) -> bool:
    """Whether vLLM will run this configuration with its V2 model runner; true also if that is not known."""
    try:
        chosen = getattr(vllm_config, "use_v2_model_runner", None)
    except Exception:  # vLLM's own decision failed: no assumption in the generous direction
        return True
    if chosen is not None:
        return bool(chosen)
    # Other releases enable the V2 runner by the environment variable alone, or do not have it.
    return os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "").strip().lower() not in ("", "0", "false")


def is_v2_runner(module: str) -> bool:
    """Whether a model runner's class, by the module it is defined in, is a V2 one."""
    return ".worker.gpu.model_runner" in module


def before_each_step(worker: Any, act: Callable[[Any], None]) -> None:
    """Have ``act(metadata)`` called at the start of each step of the worker's runner, before it touches any block.

    ``metadata``: the connector's, of the step. ``worker``: vLLM's. UnsupportedError: it has no such runner.
    """
    runner = getattr(worker, "model_runner", None)
    execute = getattr(runner, "execute_model", None)
    if runner is None or not callable(execute):
        raise UnsupportedError(
            "this vLLM's worker has no model_runner.execute_model: nothing withdraws blocks before they are written"
        )

    @functools.wraps(execute)
    def execute_model(scheduler_output: Any, *arguments: Any, **keywords: Any) -> Any:
        metadata = getattr(scheduler_output, "kv_connector_metadata", None)
        if metadata is not None:  # None: a step without requests, to warm up
            # As the runner's own steps: its KV tensors can't be written outside of it
            with torch.inference_mode():
                act(metadata)
        return execute(scheduler_output, *arguments, **keywords)

    runner.execute_model = execute_model


__all__ = ["before_each_step", "is_v2_runner", "uses_v2_runner"]
