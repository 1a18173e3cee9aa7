"""The requests that the scheduler's side follows, and whether their keys say what their blocks hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvclient.vllm.adapters import Adapter, Adapters
from kvclient.vllm.groups import KvGroup
from kvclient.vllm.keys import KeySource, RequestKeys
from kvclient.vllm.running_model import RunningModel
from kvclient.vllm.tables import BlockTable
from kvclient.vllm.tracked import TrackedRequest, confirmed_tokens
from kvclient.vllm.wishes import prefilled_of, wishes_of

# Of a request that is not shared: its keys are never used.
_UNKNOWN = "unknown"


class Requests:
    """Those that have been asked for or scheduled and have not ended. Not thread-safe."""

    def __init__(self, adapters: Adapters) -> None:
        """Without requests."""
        self.by_id: dict[str, TrackedRequest] = {}
        self._adapters = adapters
        # LoRA name -> identity that the running requests with it have
        self._adapter_of: dict[str, str] = {}
        self._groups: Sequence[KvGroup] = ()
        self._block_tokens = 0

    def begin(self, groups: Sequence[KvGroup], block_tokens: int) -> None:
        """``groups``: the engine's KV-cache groups."""
        self._groups, self._block_tokens = groups, block_tokens

    def track(self, request: Any, keys: KeySource, step: int) -> TrackedRequest:
        """What is known of vLLM's ``request``, from its first time on."""
        tracked = self.by_id.get(request.request_id)
        if tracked is None:
            adapter = self._adapters.of(request.lora_request) if request.lora_request is not None else None
            tables = [BlockTable(group, self._block_tokens) for group in self._groups]
            tracked = TrackedRequest(request, _keys_of(keys, request, adapter), tables, step)
            if adapter is not None:
                tracked.adapter = adapter
            if getattr(request, "kv_transfer_params", None) is not None:
                tracked.publishes, tracked.imports = wishes_of(request)
                tracked.prefilled = prefilled_of(request)
            self.by_id[request.request_id] = tracked
        return tracked

    def certain(self, tracked: TrackedRequest, model: RunningModel, computed: int) -> bool:
        """Whether the content of the request's blocks is certain; ``computed``: tokens in the engine's own cache."""
        tracked.shared = model.shares and tracked.keys.certain
        if tracked.request.lora_request is not None:
            self._look_at_adapter(tracked, model.keys, computed)
        return tracked.shared

    def _look_at_adapter(self, tracked: TrackedRequest, keys: KeySource, computed: int) -> None:
        lora = tracked.request.lora_request
        adapter = self._adapters.of(lora)
        if adapter is None or (adapter.replaced and computed):
            tracked.shared = False
        elif tracked.adapter is None or tracked.adapter.identity != adapter.identity:
            tracked.adapter, tracked.keys = adapter, _keys_of(keys, tracked.request, adapter)
        if adapter is not None and self._adapter_of.get(lora.lora_name) != adapter.identity:
            self._adapter_of[lora.lora_name] = adapter.identity
            # Others may have begun with the adapter's earlier content
            for other in self.by_id.values():
                theirs = other.request.lora_request
                if theirs is not None and theirs.lora_name == lora.lora_name and other.adapter:
                    other.shared = other.shared and other.adapter.identity == adapter.identity

    def renewed(self, keys: KeySource, *, empty: bool) -> None:
        """The model has other weights and keys; not ``empty``: requests may have blocks of the weights before."""
        for tracked in self.by_id.values():
            tracked.shared = tracked.shared and empty
            tracked.keys = _keys_of(keys, tracked.request, tracked.adapter)
            tracked.described = 0

    def computed(self, request_id: str) -> bool:
        """Whether all blocks of a request are computed whose tokens are known."""
        tracked = self.by_id.get(request_id)
        if tracked is None:
            return True
        last: int = (tracked.request.num_tokens - 1) // self._block_tokens
        return bool(confirmed_tokens(tracked.request) // self._block_tokens >= last)


def _keys_of(keys: KeySource, request: Any, adapter: Adapter | None) -> RequestKeys:
    return RequestKeys(keys, request, adapter.identity if adapter else _UNKNOWN)


__all__ = ["Requests"]
