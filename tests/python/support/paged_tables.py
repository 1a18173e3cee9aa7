"""Block tables of requests, one for each KV-cache group, with vLLM's rules of what a group keeps and finds."""

from __future__ import annotations

from collections.abc import Sequence

from kvclient.vllm.groups import KvGroup
from support.paged_pool import BLOCK_TOKENS, Block, Pool
from support.paged_step import Request

#: In place of a window: the group's blocks hold states instead of the KV of tokens.
STATE = -1


def chunks(tokens: int) -> int:
    """In place of a window: the group attends within chunks of so many tokens, at least 2."""
    return -tokens


def group_of(window: int) -> KvGroup:
    """The group as the connector knows it."""
    if window == STATE:
        return KvGroup(2, state=True)
    return KvGroup(chunk=-window) if window < 0 else KvGroup(window)


def first_block(window: int, tokens: int) -> int:
    """The first block that a group needs to go on after ``tokens``; ``window``: 0: all; or STATE, or ``chunks``."""
    if window == STATE:
        return max(0, tokens - 1) // BLOCK_TOKENS  # the last one
    if window < 0:
        return tokens // -window * -window // BLOCK_TOKENS
    return max(0, tokens - window + 1) // BLOCK_TOKENS if window else 0


def ids_of(tables: Sequence[Sequence[Block]]) -> tuple[list[int], ...]:
    return tuple([block.block_id for block in table] for table in tables)


class Tables:
    """Over one pool; ``windows``: for each group the tokens that its attention reaches, 0: all."""

    def __init__(self, pool: Pool, windows: Sequence[int]) -> None:
        self.pool, self.windows = pool, list(windows)
        self._of_this_step: set[int] = set()  # blocks of states that the step computes to their end

    def step_starts(self) -> None:
        self._of_this_step.clear()

    def wanted(self, group: int, held: int, tokens: int) -> tuple[int, int]:
        """Null blocks and new blocks that a request with ``held`` blocks needs for ``tokens``: one state for a step."""
        missing = max(0, -(-tokens // BLOCK_TOKENS) - held)
        return (missing - 1, 1) if missing and self.windows[group] == STATE else (0, missing)

    def chunk(self, request: Request, start: int, count: int) -> int:
        """As vLLM's ``_mamba_block_aligned_split``: pieces of a prompt end where a block does."""
        end, prompt_end = start + count, max(len(request.prompt_token_ids), request.num_tokens - 1)
        if STATE not in self.windows or start >= prompt_end:
            return count
        if end < prompt_end:
            end = end // BLOCK_TOKENS * BLOCK_TOKENS
        stops = [(request.num_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS]
        stops += [(start // BLOCK_TOKENS + 1) * BLOCK_TOKENS] if start % BLOCK_TOKENS else []
        return max(0, min([stop for stop in stops if start < stop < end], default=end) - start)

    def too_early(self, hits: Sequence[Sequence[Block]]) -> bool:
        """Whether the engine's own blocks have a state that this very step is about to compute."""
        return any(block.block_id in self._of_this_step for hit in hits for block in hit)

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
                    if self.windows[group] == STATE:
                        self._of_this_step.add(table[index].block_id)

    def give_back(self, request: Request) -> None:
        for table in request.tables:
            self.pool.give_back([block for block in table if block.block_id])
        request.tables = self.none()
