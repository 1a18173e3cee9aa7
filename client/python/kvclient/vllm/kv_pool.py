"""KV memory that peers map read-only: vLLM allocates its KV caches in kvclient's pool of exportable memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from kvclient.torch import mem_pool


def obstacle(vllm_config: Any, *, asks: bool) -> str:
    """Why this engine can't have its KV caches in such a pool; "": it can.

    ``asks``: whether this vLLM asks connectors for a pool.
    """
    if not asks:
        return "this vLLM asks no connector where to allocate KV caches; 0.31 and later do"
    if getattr(vllm_config.model_config, "enable_sleep_mode", False):
        return "sleep mode frees KV memory of vLLM's own allocator only; start without it"
    return ""


class KvPool:
    """The pool of one worker, on its current GPU. It lives as long as this: keep it while the KV caches are used."""

    def __init__(self) -> None:
        """UnsupportedError, NotFoundError, ResourceExhaustedError: exportable memory can't be had, and why."""
        self._pool = mem_pool()

    def allocating(self) -> AbstractContextManager[Any]:
        """Under it, tensors of this thread are allocated in the pool."""
        context: AbstractContextManager[Any] = torch.cuda.use_mem_pool(self._pool)
        return context


__all__ = ["KvPool", "obstacle"]
