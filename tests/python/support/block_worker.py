"""A worker without a model: blocks hold bytes that follow from their key, so that any wrong byte shows."""

from __future__ import annotations

import hashlib
import random

import kvclient
from support.specs import small_spec

BLOCK_TOKENS = 4
BLOCK_BYTES = 1 << 14


def spec(**fields: object) -> kvclient.ModelSpec:
    base: dict[str, object] = {
        "model_id": "test/blocks",
        "revision": "r1",
        "kv_dtype": "bfloat16",
        "layout": "NHD",
        "num_layers": 2,
        "num_kv_heads": 2,
        "block_tokens": BLOCK_TOKENS,
    }
    return small_spec(**{**base, **fields})


def prompt(blocks: int, seed: int = 1) -> list[int]:
    """Token ids of `blocks` full blocks, the same for the same seed."""
    return random.Random(seed).choices(range(1000), k=blocks * BLOCK_TOKENS)


def content(key: kvclient.BlockKey) -> bytes:
    """Bytes of a block: [BLOCK_BYTES], a stream derived from its key."""
    return hashlib.shake_128(bytes.fromhex(key.hex)).digest(BLOCK_BYTES)


class BlockWorker:
    def __init__(
        self,
        socket: str,
        name: str,
        blocks: int = 64,
        fields: dict[str, object] | None = None,
    ) -> None:
        self.client = kvclient.Client(socket, name=name)
        self.model = self.client.declare_model(spec(**(fields or {})))
        geometry = kvclient.Geometry.contiguous(blocks, BLOCK_BYTES)
        self.region = self.client.allocate_region(self.model, geometry, name=name)

    def _chain(self, tokens: list[int], extras: list[tuple[str, str]]) -> kvclient.KeyChain:
        keys = [kvclient.ExtraKey(kvclient.ExtraKey.Kind[kind], value) for kind, value in extras]
        return kvclient.KeyChain(self.model, extras=keys)

    def keys(self, tokens: list[int], extras: list[tuple[str, str]] | None = None) -> list[kvclient.BlockKey]:
        return list(self._chain(tokens, extras or []).extend(tokens))

    def publish(
        self,
        tokens: list[int],
        blocks: list[int],
        first: int = 0,
        count: int | None = None,
        extras: list[tuple[str, str]] | None = None,
        flush: bool = True,
    ) -> int:
        """Writes blocks [first, first + count) of the prompt's prefix to `blocks` of the region and publishes them."""
        chain = self._chain(tokens, extras or [])
        root = chain.parent
        keys = list(chain.extend(tokens))
        run = keys[first : None if count is None else first + count]
        assert len(run) == len(blocks)
        writes = self.region.begin_writes(blocks)
        for key, block in zip(run, blocks, strict=True):
            self.region.block(block)[:] = memoryview(content(key))
        outcome = self.region.publish_run(run, keys[first - 1] if first else root, first, writes)
        if flush:
            self.region.flush(5.0)
        return outcome.readable

    def find(self, tokens: list[int], extras: list[tuple[str, str]] | None = None) -> tuple[int, str]:
        match = self.client.find(self.keys(tokens, extras))
        return len(match), match.end.name

    def fetch(self, tokens: list[int], blocks: list[int]) -> tuple[int, int]:
        """Imports the prefix of `tokens` to `blocks`; returns (valid blocks, those among them with wrong bytes)."""
        keys = self.keys(tokens)
        match = self.client.find(keys)
        result = self.client.import_blocks(match, self.region, blocks[: len(match)]).wait(10.0)
        wrong = sum(self.region.block(blocks[i]).tobytes() != content(keys[i]) for i in range(result.valid))
        return result.valid, wrong

    def retract(self, blocks: list[int]) -> None:
        self.region.retract(blocks)

    def near_misses(self) -> list[list[str]]:
        return [[each.field for each in miss.differences] for miss in self.client.near_misses(self.model)]

    def stats(self) -> dict[str, int]:
        stats = self.client.stats()
        return {name: getattr(stats, name) for name in dir(stats) if not name.startswith("_")}

    def wait_connected(self, timeout_s: float = 10.0) -> None:
        self.client.wait_connected(timeout_s)

    def flush(self, timeout_s: float = 10.0) -> None:
        self.region.flush(timeout_s)


def make(*arguments: object) -> BlockWorker:
    return BlockWorker(*arguments)  # type: ignore[arg-type]
