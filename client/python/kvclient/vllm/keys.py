"""Keys of a request's blocks.

A block has a name, which all shards share, and a key of each shard, derived from it. Names are the engine's own block
hashes where these can be relied on (engine_hashes.py), else they come from a chain over the tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from kvclient._native import BlockKey, BlockKeys, Client, ExtraKey, KeyChain, ModelSpec, Shard, ShardKeys
from kvclient.errors import InvalidArgumentError
from kvclient.vllm.engine_hashes import EngineHashes

_MOST_CACHED = 256


class KeySource:
    """What the keys of an engine's requests are derived from. Not thread-safe."""

    def __init__(
        self,
        spec: ModelSpec,
        shards: Sequence[Shard],
        hashes: EngineHashes | None = None,
        scales: Sequence[int] = (),
    ) -> None:
        """``hashes``: the engine's own, which ``spec`` names; None: keys are derived from the tokens.

        ``scales``: of each KV-cache group (KvGroup); empty: blocks of all of them have one size.
        """
        self.spec, self.shards, self.hashes, self.scales = spec, list(shards), hashes, list(scales)
        #: Of each shard: names in one of its blocks, the last of which is the block's.
        self.names_in_block = [self.scales[shard.kv_group] if scales else 1 for shard in shards]
        self._of_shards: dict[tuple[str, ...], list[ShardKeys]] = {}
        #: ``of_shards()``; empty where names are the keys.
        self.plain = [] if self.chain_is_key else [ShardKeys(spec, shard, []) for shard in shards]
        self.checked = hashes is None

    @property
    def chain_is_key(self) -> bool:
        """Whether names are the keys: those of a chain, of an engine that is not sharded."""
        return self.hashes is None and self.shards == [Shard()]

    def of_shards(self, lora: str = "", embeddings: str = "") -> list[ShardKeys]:
        """For each shard, with what the names do not hold."""
        if not lora and not embeddings:
            return self.plain
        known = self._of_shards.get((lora, embeddings))
        if known is None:
            if len(self._of_shards) >= _MOST_CACHED:
                self._of_shards.clear()
            extras = [ExtraKey(ExtraKey.Kind.LORA, lora)] if lora else []
            extras += [ExtraKey(ExtraKey.Kind.PROMPT_EMBEDS, embeddings)] if embeddings else []
            known = [ShardKeys(self.spec, shard, extras) for shard in self.shards]
            self._of_shards[(lora, embeddings)] = known
        return known

    def prepare(self) -> None:
        """Do what only the first request would need, so that it does not take longer than others."""
        if self.hashes is not None:
            self.hashes.of_first_block(range(self.spec.block_tokens))

    def check(self, request: Any) -> None:
        """Compare the engine's hashes with what they are said to be, once. UnsupportedError: they differ."""
        if not self.checked:
            assert self.hashes is not None
            self.checked = self.hashes.check(request, self.spec.block_tokens)


class RequestKeys:
    """Keys of one request for each shard, derived when asked for. Not thread-safe."""

    def __init__(self, source: KeySource, request: Any, adapter: str = "") -> None:
        """``request``: vLLM's Request, of which hashes or tokens, salt, images and embeddings are read.

        ``adapter``: identity of its LoRA adapter (adapters.py); required for a request with an adapter.
        """
        self._source, self._request, self._adapter, self._dropped = source, request, "", False
        if request.lora_request is not None:
            if not adapter:
                raise InvalidArgumentError("keys of a request whose adapter is not known")
            self._adapter = adapter
        if not source.checked:
            source.check(request)
        self._start()

    def _start(self) -> None:
        source = self._source
        self._input = self._input_now()
        self._names: BlockKeys | None = None  # until they are needed
        self._last_names: dict[int, BlockKeys] = {}  # of blocks of so many names
        self._roots: list[BlockKey] = []
        if source.hashes is not None:
            embeddings = self._request.prompt_embeds
            if embeddings is None and not self._adapter:
                self._of_shards = source.plain
            else:
                self._of_shards = source.of_shards(self._adapter, _form(embeddings))
            if len(self._of_shards) == 1:
                self._keys = [BlockKeys()]
                return
        else:
            self._names = BlockKeys()
            self._chain = KeyChain(source.spec, Shard(), _request_extras(self._request, self._adapter))
            root = BlockKeys([self._chain.parent])
            if source.chain_is_key:
                self._keys, self._roots = [self._names], list(root)
                return
            self._of_shards = source.of_shards()
            for each in self._of_shards:
                derived = BlockKeys()
                each.extend(derived, root)
                self._roots.append(derived[0])
        self._keys = [BlockKeys() for _ in self._of_shards]

    @property
    def roots(self) -> list[BlockKey]:
        """The key before the first block, for each shard."""
        self._roots = self._roots or [each.root for each in self._of_shards]
        return self._roots

    def _input_now(self) -> tuple[int, int, int | None]:
        request = self._request
        embeddings = request.prompt_embeds
        return (
            len(request.prompt_token_ids or ()),
            len(request.mm_features or ()),
            None if embeddings is None else int(embeddings.shape[0]),
        )

    @property
    def certain(self) -> bool:
        """False: a streaming session has gone on, and the engine may have kept the hash of a token that was dropped."""
        hashes = self._source.hashes
        if hashes is not None and not hashes.follow_sessions:
            self._dropped = self._dropped or self._input_now() != self._input
        return not self._dropped

    @property
    def _plain(self) -> bool:
        return self._request.prompt_embeds is None and not self._request.mm_features

    def upto(self, blocks: int) -> list[BlockKeys]:
        """Keys of at least the first ``blocks`` blocks, whose tokens must all be known, a list for each shard."""
        return self.whole(range(len(self._keys)), blocks)

    def whole(self, shards: Sequence[int], blocks: int) -> list[BlockKeys]:
        """The same of some shards, by their places."""
        self._look_at_input()
        for number in shards:
            keys = self._keys[number]
            if blocks > len(keys):
                names = self._names_of(number, blocks)
                if keys is not names:
                    self._of_shards[number].extend(keys, names)
        return [self._keys[number] for number in shards]

    def published(self, client: Client, first: int, last: int, *, include_own: bool) -> int:
        """How many of the blocks [first, last) are published for all shards, without a gap from ``first`` on."""
        hashes = self._source.hashes
        if hashes is None or len(self._keys) != 1:
            return client.count_published(self.upto(last), first, last, include_own=include_own)
        keys = self._keys[0]
        if len(keys):
            self._look_at_input()
            keys = self._keys[0]
        # One call for all that most requests need
        return client.count_hashed(self._request.block_hashes, self._of_shards[0], keys, first, last, include_own)

    def between(self, shards: Sequence[int], first: int, last: int) -> list[BlockKeys]:
        """Keys of the blocks [first, last), of some shards by their places. Derives no others if it can do without."""
        self._look_at_input()
        found = []
        for number in shards:
            keys = self._keys[number]
            if len(keys) >= last:
                found.append(keys[first:last])
                continue
            names = self._names_of(number, last)
            if len(keys) < first:
                part = BlockKeys()
                self._of_shards[number].extend(part, names[first:last])
                found.append(part)
                continue
            if keys is not names:
                self._of_shards[number].extend(keys, names)
            found.append(keys[first:last])
        return found

    def run(self, shards: Sequence[int], first: int, last: int) -> tuple[list[BlockKeys], list[BlockKey]]:
        """``between``, and ``before`` of the first of these blocks; 0 <= first < last."""
        if not first:
            return self.between(shards, 0, last), self.before(shards, 0)
        keys = self.between(shards, first - 1, last)
        return [each[1:] for each in keys], [each[0] for each in keys]

    def ends(self, first: int, last: int, names: int) -> BlockKeys:
        """Keys of the first shard's blocks that end the units [first, last), each of so many ``names``."""
        per = names // self._source.names_in_block[0]
        if per == 1:
            return self.between((0,), first, last)[0]
        return self.whole((0,), last * per)[0][(first + 1) * per - 1 : last * per : per]

    def before(self, shards: Sequence[int], first: int) -> list[BlockKey]:
        """The key before block ``first``, of some shards by their places; the root before block 0."""
        if not first:
            return [self.roots[number] for number in shards]
        return [keys[0] for keys in self.between(shards, first - 1, first)]

    def _look_at_input(self) -> None:
        if self._input_now() != self._input:
            # A streaming session has gone on, with other tokens or items that reach into earlier
            # blocks.
            self._dropped = not self.certain
            self._start()

    def _names_of(self, number: int, blocks: int) -> BlockKeys:
        """Names of at least the first ``blocks`` blocks of a shard, of which its keys are derived."""
        count = self._source.names_in_block[number]
        if count == 1:
            return self._named(blocks)
        names = self._last_names.setdefault(count, BlockKeys())
        if blocks > len(names):
            if self._source.hashes is not None:
                names.extend_hashes(self._request.block_hashes[count - 1 :: count], blocks)
                if blocks > len(names):
                    raise InvalidArgumentError(f"{len(names)} of {blocks} blocks have a hash")
            else:
                names.extend(self._named(blocks * count)[(len(names) + 1) * count - 1 :: count])
        return names

    def _named(self, blocks: int) -> BlockKeys:
        """At least the first ``blocks`` names, each of ``block_tokens`` tokens."""
        names = self._names
        if names is None:
            names = self._names = BlockKeys()
        if blocks > len(names):
            if self._source.hashes is not None:
                names.extend_hashes(self._request.block_hashes, blocks)
                if blocks > len(names):
                    raise InvalidArgumentError(f"{len(names)} of {blocks} blocks have a hash")
            else:
                self._extend_chain(names, blocks)
        return names

    def _extend_chain(self, names: BlockKeys, blocks: int) -> None:
        size, known = self._source.spec.block_tokens, len(names)
        prompt = self._request.prompt_token_ids
        if self._plain and not known and prompt is not None and blocks * size <= len(prompt):
            names.extend(self._chain.extend(prompt))  # all of it, without a copy of the list
            return
        tokens = self._request.all_token_ids[known * size : blocks * size]
        if self._plain:
            names.extend(self._chain.extend(tokens))
            return
        for index in range(known, blocks):
            extras = _block_extras(self._request, index * size, (index + 1) * size)
            names.append(self._chain.next(tokens[(index - known) * size : (index - known + 1) * size], extras))


def _form(embeddings: Any) -> str:
    """Type and width of prompt embeddings, which vLLM's hash of their bytes does not tell."""
    return "" if embeddings is None else f"{embeddings.dtype}:{tuple(embeddings.shape[1:])}"


def _request_extras(request: Any, adapter: str) -> list[ExtraKey]:
    extras = []
    if adapter:
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


__all__ = ["KeySource", "RequestKeys"]
