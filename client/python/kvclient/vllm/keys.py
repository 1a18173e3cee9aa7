"""Keys of a request's blocks, derived by kvclient; the engine's own hashes differ between processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from kvclient._native import BlockKey, BlockKeys, ExtraKey, KeyChain, ModelSpec, Shard
from kvclient.errors import InvalidArgumentError


class RequestKeys:
    """Keys of one request for each shard, derived when asked for. Not thread-safe."""

    def __init__(self, spec: ModelSpec, shards: Sequence[Shard], request: Any, adapter: str = "") -> None:
        """``request``: vLLM's Request, of which tokens, salt, multimodal items and embeddings are read.

        ``adapter``: identity of its LoRA adapter (adapters.py); required for a request with an adapter.
        """
        self._request = request
        self._block_tokens = spec.block_tokens
        self._extras = _request_extras(request, adapter)
        self._spec, self._shards = spec, list(shards)
        self._start()

    def _start(self) -> None:
        self._chains = [KeyChain(self._spec, shard, self._extras) for shard in self._shards]
        self.roots: list[BlockKey] = [chain.parent for chain in self._chains]
        self._keys = [BlockKeys() for _ in self._shards]
        self._input = self._input_now()

    def _input_now(self) -> tuple[int, int, int | None]:
        request = self._request
        embeddings = request.prompt_embeds
        return (
            len(request.prompt_token_ids or ()),
            len(request.mm_features or ()),
            None if embeddings is None else int(embeddings.shape[0]),
        )

    @property
    def _plain(self) -> bool:
        return self._request.prompt_embeds is None and not self._request.mm_features

    def upto(self, blocks: int) -> list[BlockKeys]:
        """Keys of at least the first ``blocks`` blocks, whose tokens must all be known, a list for each shard."""
        if (
            self._input_now() != self._input
            # A streaming session has continued, with other tokens or items that reach into earlier
            # blocks
        ):
            self._start()
        known = len(self._keys[0])
        if blocks > known:
            size = self._block_tokens
            prompt = self._request.prompt_token_ids
            if self._plain and not known and prompt is not None and blocks * size <= len(prompt):
                # All of it, without a copy of the list
                self._keys = [chain.extend(prompt) for chain in self._chains]
                return self._keys
            tokens = self._request.all_token_ids[known * size : blocks * size]
            if self._plain:
                for chain, keys in zip(self._chains, self._keys, strict=True):
                    keys.extend(chain.extend(tokens))
            else:
                for index in range(known, blocks):
                    extras = _block_extras(self._request, index * size, (index + 1) * size)
                    block = tokens[(index - known) * size : (index - known + 1) * size]
                    for chain, keys in zip(self._chains, self._keys, strict=True):
                        keys.append(chain.next(block, extras))
        return self._keys

    def parents(self, first: int) -> list[BlockKey]:
        """The key before block ``first``, for each shard; the chain's root before block 0."""
        return self.roots if first == 0 else [keys[first - 1] for keys in self.upto(first)]


def _request_extras(request: Any, adapter: str) -> list[ExtraKey]:
    extras = []
    if request.lora_request is not None:
        if not adapter:
            raise InvalidArgumentError("keys of a request whose adapter is not known")
        extras.append(ExtraKey(ExtraKey.Kind.LORA, adapter))
    if request.cache_salt:
        extras.append(ExtraKey(ExtraKey.Kind.CACHE_SALT, request.cache_salt))
    return extras


def _block_extras(request: Any, start: int, end: int) -> list[ExtraKey]:
    """What determines a block besides its tokens [start, end): items and embeddings that reach into it."""
    extras = []
    for feature in request.mm_features or ():
        first = feature.mm_position.offset
        if first < end and first + feature.mm_position.length > start:
            extras.append(ExtraKey(ExtraKey.Kind.MULTIMODAL, f"{feature.identifier}:{first - start}"))
    embeddings = request.prompt_embeds
    if embeddings is not None and start < embeddings.shape[0]:
        part = embeddings[start:end].contiguous().cpu()
        content = part.reshape(-1).view(torch.uint8).numpy().tobytes()
        text = f"{part.dtype}:{tuple(part.shape)}:".encode() + hashlib.sha256(content).digest()
        extras.append(ExtraKey(ExtraKey.Kind.PROMPT_EMBEDS, text))
    return extras


__all__ = ["RequestKeys"]
