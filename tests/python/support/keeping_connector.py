"""A connector like those that offload to host memory: it keeps what requests have left, of all KV-cache groups.

It loads in the background, and for a request that begins with everything an earlier one left. Scheduler and worker are
in one process, so what a request leaves is copied when it ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)


@dataclass
class Kept:
    """The KV of ``blocks`` leading blocks: for each group, a block's place in the prompt and its layers' content."""

    blocks: int
    groups: list[dict[int, list[torch.Tensor]]]


@dataclass
class Loads(KVConnectorMetadata):
    """Request, what was kept, and the request's blocks of each group."""

    loads: list[tuple[str, Kept, list[list[int]]]] = field(default_factory=list)


class KeepingConnector(KVConnectorBase_V1, SupportsHMA):
    """Takes part in nothing but its own process."""

    kept: ClassVar[dict[tuple[int, ...], Kept]] = {}
    caches: ClassVar[dict[str, torch.Tensor]] = {}
    loaded: ClassVar[int] = 0  # requests
    fails: ClassVar[bool] = False  # whether the next load fails, and leaves other bytes

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_tokens = vllm_config.cache_config.block_size
        self._layers = [group.layer_names for group in kv_cache_config.kv_cache_groups]
        self._found: dict[str, Kept] = {}
        self._loads = Loads()
        self._ended: set[str] = set()
        self._failed: set[str] = set()

    # ---- scheduler ----

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        tokens = tuple(request.all_token_ids)[:-1]
        fits = [each for prefix, each in self.kept.items() if prefix == tokens[: len(prefix)]]
        if not fits or num_computed_tokens:
            return 0, False
        self._found[request.request_id] = max(fits, key=lambda each: each.blocks)
        return self._found[request.request_id].blocks * self._block_tokens, True

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            tables = [list(table) for table in blocks.get_block_ids()]
            self._loads.loads.append((request.request_id, self._found.pop(request.request_id), tables))

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        loads, self._loads = self._loads, Loads()
        return loads

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        count = min(request.num_computed_tokens, request.num_tokens) // self._block_tokens
        groups = [
            {
                place: [self.caches[layer][block].clone() for layer in layers]
                for place, block in enumerate(table[:count])
                if block
            }
            for layers, table in zip(self._layers, block_ids, strict=True)
        ]
        self.kept[tuple(request.all_token_ids)[: count * self._block_tokens]] = Kept(count, groups)
        return False, None

    # ---- worker ----

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        type(self).caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        for request_id, kept, tables in metadata.loads:
            for layers, table, contents in zip(self._layers, tables, kept.groups, strict=True):
                for place, content in contents.items():
                    if table[place]:
                        for layer, of_layer in zip(layers, content, strict=True):
                            self.caches[layer][table[place]] = 3 if self.fails else of_layer
            self._ended.add(request_id)
            type(self).loaded += not self.fails
            if self.fails:
                self._failed.add(request_id)
                type(self).fails = False  # vLLM asks again, and is to compute the request
                self.kept.clear()

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

        results = KVConnectorTransferResults(finished_recving=self._ended, failed_recving=self._failed)
        self._ended, self._failed = set(), set()
        return results

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass
