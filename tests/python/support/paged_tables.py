"""Block tables of requests, one for each KV-cache group, with vLLM's rules of what a group keeps and finds."""

from __future__ import annotations

from collections.abc import Sequence

from support.paged_pool import BLOCK_TOKENS, Block, Pool
from support.paged_step import Request


def first_block(window: int, tokens: int) -> int:
    """The first block that a group needs to go on after ``tokens``; ``window``: 0: all."""
    return max(0, tokens - window + 1) // BLOCK_TOKENS if window else 0


def ids_of(tables: Sequence[Sequence[Block]]) -> tuple[list[int], ...]:
    return tuple([block.block_id for block in table] for table in tables)


class Tables:
    """Over one pool; ``windows``: for each group the tokens that its attention reaches, 0: all."""

    def __init__(self, pool: Pool, windows: Sequence[int]) -> None:
        self.pool, self.windows = pool, list(windows)

    def none(self) -> list[list[Block]]:
        return [[] for _ in self.windows]

    def first(self, group: int, tokens: int) -> int:
        return first_block(self.windows[group], tokens)

    def cached_blocks(self, request: Request) -> int:
        """How many blocks of the prefix the engine itself can begin after: all groups have what they need there."""
        for blocks in range((request.num_tokens - 1) // BLOCK_TOKENS, 0, -1):
            if all(
                self.pool.cached(request.content(index, group))
                for group in range(len(self.windows))
                for index in range(self.first(group, blocks * BLOCK_TOKENS), blocks)
            ):
                return blocks
        return 0

    def hits(self, request: Request, local: int, computed: int) -> list[list[Block]]:
        """The engine's own blocks for a request that is to go on after ``computed`` tokens; null before windows."""
        hits = self.none()
        for group, table in enumerate(hits):
            first = self.first(group, computed)
            table += [self.pool.blocks[0]] * first
            for index in range(first, local):
                block = self.pool.cached(request.content(index, group))
                assert block is not None
                table.append(block)
        return hits

    def leave_windows(self, request: Request) -> None:
        """Free the blocks that no window reaches any more, once the steps that read them have ended."""
        for group, table in enumerate(request.tables):
            first = self.first(group, max(0, request.num_computed_tokens - request.num_in_flight_tokens))
            first = min(first, len(table))
            self.pool.give_back([block for block in table[:first] if block.block_id])
            table[:first] = [self.pool.blocks[0]] * first

    def cache(self, request: Request, tokens: int) -> None:
        """Hashes are given when blocks are allocated, before they are computed; as far as the tokens are known."""
        for group, table in enumerate(request.tables):
            for index in range(min(tokens, request.num_tokens) // BLOCK_TOKENS):
                if table[index].block_id and table[index].block_hash is None:
                    self.pool.cache(table[index], request.content(index, group))

    def give_back(self, request: Request) -> None:
        for table in request.tables:
            self.pool.give_back([block for block in table if block.block_id])
        request.tables = self.none()
