"""Keys of a request's blocks: our own derivation, never the engine's hashes, which differ between processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kvclient._native import BlockKey, BlockKeys, ExtraKey, KeyChain, ModelSpec, Shard


class RequestKeys:
    """Keys of one request for each shard, derived as far as asked. Not thread-safe."""

    def __init__(self, spec: ModelSpec, shards: Sequence[Shard], request: Any) -> None:
        """``request``: vLLM's Request, of which tokens, LoRA, salt, multimodal items and embeddings are read."""
        self._request = request
        self._block_tokens = spec.block_tokens
        extras = _request_extras(request)
        self._chains = [KeyChain(spec, shard, extras) for shard in shards]
        self.roots: list[BlockKey] = [chain.parent for chain in self._chains]
        self._keys = [BlockKeys() for _ in shards]
        self._plain = request.prompt_embeds is None and not request.mm_features

    def upto(self, blocks: int) -> list[BlockKeys]:
        """Keys of at least the first ``blocks`` blocks, whose tokens must all be known, a list for each shard."""
        known = len(self._keys[0])
        if blocks > known:
            size = self._block_tokens
            prompt = self._request.prompt_token_ids
            if self._plain and not known and prompt is not None and blocks * size <= len(prompt):
                self._keys = [chain.extend(prompt) for chain in self._chains]  # all of it, without a copy of the list
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
        return self.roots if first == 0 else [keys[first - 1] for keys in self._keys]


def digest_files(folder: str, patterns: Sequence[str]) -> str:
    """Digest of the names, sizes and modification times of files in ``folder``; 16 hex digits, "" if there are none.

    Stands for their content without reading it: engines that load the same files agree, and a file that was
    replaced is another. Copies of a folder are taken for different, which costs sharing, never correctness.
    """
    found = sorted({path for pattern in patterns for path in Path(folder).glob(pattern)})
    digest = hashlib.sha256()
    for path in found:
        status = path.stat()
        digest.update(f"{path.name}:{status.st_size}:{status.st_mtime_ns};".encode())
    return digest.hexdigest()[:16] if found else ""


@lru_cache(maxsize=1024)
def _adapter(name: str, path: str, number: int) -> str:
    """``number``: vLLM's of this loading. Its files are looked at once, when first seen: later they may be others."""
    files = digest_files(path, ("*.safetensors", "*.bin", "*.pt", "*.json")) if os.path.isdir(path) else path
    return f"{name}:{files}"


def _request_extras(request: Any) -> list[ExtraKey]:
    extras = []
    if request.lora_request is not None:
        lora = request.lora_request
        extras.append(ExtraKey(ExtraKey.Kind.LORA, _adapter(lora.lora_name, lora.lora_path or "", lora.lora_int_id)))
    if request.cache_salt:
        extras.append(ExtraKey(ExtraKey.Kind.CACHE_SALT, request.cache_salt))
    return extras


def _block_extras(request: Any, start: int, end: int) -> list[ExtraKey]:
    """What besides the tokens [start, end) determines a block: items and embeddings that reach into it."""
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


__all__ = ["RequestKeys", "digest_files"]
