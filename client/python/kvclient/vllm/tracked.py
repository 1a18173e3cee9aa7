"""A request as the scheduler's side follows it, from the first time that it is asked for until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvclient.vllm.adapters import Adapter
from kvclient.vllm.keys import RequestKeys
from kvclient.vllm.tables import BlockTable


class TrackedRequest:
    """A request that has been asked for or scheduled.

    What most requests never change they have from the class, so that one more costs the scheduler's thread less.
    """

    adapter: Adapter | None = None
    shared: bool = True  # False: the content of its blocks is not certain
    local_blocks: int = 0  # found in the engine's own prefix cache when last asked
    local_tokens: int = 0  # the same in tokens
    publishes: bool = True  # False: the request asks that its blocks be not published
    imports: bool = True
    prefilled: int = 0  # tokens that a prefill engine has computed for it
    first_asked: float = 0.0
    equal_since: float = 0.0  # it waits since then for another request's import; 0: it never has
    loading: bool = False
    load_failed: bool = False  # the present load
    described: int = 0  # leading blocks whose tokens kvmd-mesh has been told
    failed_loads: int = 0

    def __init__(self, request: Any, keys: RequestKeys, tables: Sequence[BlockTable] = (), since: int = 0) -> None:
        """``request``: vLLM's Request. ``tables``: for each KV-cache group.

        ``since``: the step of its last (re)start; its blocks are computed in later steps.
        """
        self.request, self.keys, self.tables, self.since = request, keys, tables, since


def confirmed_tokens(request: Any) -> int:
    """Leading tokens whose step has ended."""
    ahead = max(getattr(request, "num_in_flight_tokens", 0), request.num_output_placeholders)
    return int(min(request.num_computed_tokens - ahead, request.num_tokens))


__all__ = ["TrackedRequest", "confirmed_tokens"]
