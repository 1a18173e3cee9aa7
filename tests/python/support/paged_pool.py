"""A block pool as vLLM's, and what a block of it holds: a function of the tokens up to its end."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

BLOCK_TOKENS = 4
BLOCK_BYTES = 256


@dataclass
class Block:
    block_id: int
    block_hash: bytes | None = None
    ref_cnt: int = 0


class Pool:
    """As vLLM's BlockPool: 0 is the null block; free blocks keep their hash until they are reused, oldest first."""

    def __init__(self, count: int) -> None:
        self.enable_caching = True
        self.num_gpu_blocks = count
        self.blocks = [Block(i) for i in range(count)]
        self.cached_block_hash_to_block: dict[bytes, dict[int, Block]] = {}
        self._free: OrderedDict[int, Block] = OrderedDict((i, self.blocks[i]) for i in range(1, count))
        self.taken: list[int] = []  # since the last step

    def get_num_free_blocks(self) -> int:
        return len(self._free)

    def free_count(self) -> int:
        return len(self._free)

    def cached(self, content: bytes) -> Block | None:
        blocks = self.cached_block_hash_to_block.get(content)
        return next(iter(blocks.values())) if blocks else None

    def touch(self, block: Block) -> None:
        if block.ref_cnt == 0:
            del self._free[block.block_id]
        block.ref_cnt += 1

    def take(self, count: int) -> list[Block]:
        taken = [self._free.popitem(last=False)[1] for _ in range(count)]
        self.taken += [block.block_id for block in taken]
        for block in taken:
            self.evict(block)
            block.ref_cnt = 1
        return taken

    def evict(self, block: Block) -> None:
        if block.block_hash is not None:
            same = self.cached_block_hash_to_block[block.block_hash]
            del same[block.block_id]
            if not same:
                del self.cached_block_hash_to_block[block.block_hash]
            block.block_hash = None

    def cache(self, block: Block, content: bytes) -> None:
        assert block.block_hash is None
        block.block_hash = bytes(bytearray(content))  # a new object each time
        self.cached_block_hash_to_block.setdefault(block.block_hash, {})[block.block_id] = block

    def give_back(self, blocks: list[Block]) -> None:
        for block in reversed(blocks):
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                self._free[block.block_id] = block

    def reset(self) -> None:
        for block in self.blocks:
            block.block_hash = None
        self.cached_block_hash_to_block = {}


def block_bytes(tokens: list[int], group: int = 0) -> np.ndarray:
    """What a group's block holds whose prefix, itself included, is ``tokens``: [BLOCK_BYTES]."""
    return np.frombuffer(hashlib.shake_128(f"{group}:{tokens}".encode()).digest(BLOCK_BYTES), np.uint8)


def next_token(tokens: list[int]) -> int:
    """The token that follows: a function of those before it, as with greedy sampling."""
    return hashlib.sha256(str(tokens).encode()).digest()[0] % 50
