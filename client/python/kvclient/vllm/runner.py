"""Which model runner an engine has: vLLM's V2 runner can't recover from a failed load that its step waits for."""

from __future__ import annotations

import os
from typing import Any


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


__all__ = ["is_v2_runner", "uses_v2_runner"]
