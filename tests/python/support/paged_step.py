"""Requests, and what vLLM's scheduler says of a step, as far as the connector reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from support.paged_pool import BLOCK_TOKENS, Block


class Request:
    def __init__(self, request_id: str, tokens: list[int], output_tokens: int) -> None:
        self.request_id = request_id
        self.prompt_token_ids = list(tokens)
        self.num_prompt_tokens = len(tokens)
        self.all_token_ids = list(tokens)
        self.target = len(tokens) + output_tokens
        self.num_computed_tokens = 0
        self.num_output_placeholders = 0
        self.num_in_flight_tokens = 0
        self.skip_reading_prefix_cache = False
        self.prompt_embeds = None
        self.mm_features: list[Any] = []
        self.lora_request = None
        self.cache_salt = None
        # For each group; the null block where the window has left.
        self.tables: list[list[Block]] = [[]]
        self.waiting_for_load = False
        self.was_scheduled = False
        self.epoch = 0  # of preemptions: results of steps before the last one are dropped

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def blocks(self) -> list[Block]:
        """Of the first group."""
        return self.tables[0]

    @blocks.setter
    def blocks(self, blocks: list[Block]) -> None:
        self.tables[0] = blocks

    def content(self, index: int, group: int = 0) -> bytes:
        """What the engine's prefix cache knows a block by."""
        return hashlib.sha256(f"{group}:{self.all_token_ids[: (index + 1) * BLOCK_TOKENS]}".encode()).digest()


@dataclass
class NewRequest:
    req_id: str
    block_ids: tuple[list[int], ...]


@dataclass
class Cached:
    req_ids: list[str] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)


@dataclass
class Results:
    """What the connector's worker side reports at the end of a step."""

    #: Requests whose background loads have ended, and those whose step waited for its loads.
    done: set[str] = field(default_factory=set)
    waited: set[str] = field(default_factory=set)
    failed_blocks: set[int] = field(default_factory=set)
    failed_requests: set[str] = field(default_factory=set)


@dataclass
class Output:
    scheduled_new_reqs: list[NewRequest] = field(default_factory=list)
    scheduled_cached_reqs: Cached = field(default_factory=Cached)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    plan: Any = None
    kv_connector_metadata: Any = None
    new_block_ids_to_zero: list[int] | None = None
    #: Request, its blocks for each group, first token computed, how many, the request's epoch.
    work: list[tuple[Request, list[list[Block]], int, int, int]] = field(default_factory=list)
    results: Results = field(default_factory=Results)  # once it has been executed
