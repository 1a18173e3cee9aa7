"""Prefix sharing for ``generate()``: import what others have computed, publish what this process computes.

If a block fails its validation, kvmd has ended or the region is full, the blocks are computed as without the
marketplace; ``generate()`` does not raise for any of these.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from kvclient._native import Client, ExtraKey, Geometry, KeyChain, NearMiss
from kvclient.errors import DeadlineExceededError, InvalidArgumentError, KvError, UnsupportedError
from kvclient.host_store import HostStore
from kvclient.mesh import has_mesh
from kvclient.torch import view
from kvclient.transformers.cache import (
    blocks_from_cache,
    cache_argument,
    cache_from_blocks,
    empty_cache,
    first_token_held,
)
from kvclient.transformers.request import CACHE_ARGUMENTS, bypass_reason, named_arguments, prompt_of
from kvclient.transformers.spec import computation_digest, rope_buffers, spec_of, static_positions
from kvclient.weights import WeightsWatch

_log = logging.getLogger(__name__)


@dataclass
class MarketplaceStats:
    """Cumulative counts of prompts' tokens and blocks; ``bypassed`` counts requests that were not shared, by reason."""

    requests: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    blocks_own: int = 0
    blocks_imported: int = 0  # validated ones only
    blocks_failed: int = 0
    blocks_published: int = 0
    errors: int = 0
    bypassed: Counter[str] = field(default_factory=Counter)


@dataclass
class Prefix:
    """What ``fetch`` found: a cache that holds the first ``tokens`` tokens of the prompt, 0 for a miss."""

    cache: DynamicCache
    tokens: int


class Marketplace:
    """Shares the KV cache of one model's prompts with the other processes of the node.

    Thread-safe as far as the model is: fetching and publishing hold a lock, generating does not.

    Every key contains the model's weights and configuration as they were when the marketplace was made or last
    refreshed. Each request checks that they have not changed since (``WeightsWatch`` says which changes the check
    misses); if they have, no block is fetched or published until ``refresh``, and requests are counted as bypassed by
    "weights_changed" or "config_changed". Call ``refresh`` yourself after writing weights by other means than torch's
    operations on the parameters.
    """

    def __init__(
        self,
        model: Any,
        *,
        client: Client | None = None,
        socket_path: str | None = None,
        name: str | None = None,
        block_tokens: int = 16,
        pool_blocks: int = 1024,
        min_prefix_tokens: int = 64,
        publish: bool = True,
        publish_generated: bool = True,
        model_id: str | None = None,
        revision: str | None = None,
        weights_digest: str | None = None,
        tokenizer: Any = None,
        import_timeout_s: float = 5.0,
        verify_one_in: int = 0,
        connect_timeout_s: float = 1.0,
        mesh_socket: str = "",
        mesh_wait_s: float = 0.5,
        prefill_tokens_per_s: float = 0.0,
    ) -> None:
        """Describe the model, allocate a pool of ``pool_blocks`` blocks in host memory and register it.

        ``client``: by default the marketplace makes a client on ``socket_path`` (``$KVMD_SOCKET``,
        /run/kvmd/kvmd.sock). It waits ``connect_timeout_s`` for kvmd; until kvmd starts, all prompts are computed.
        ``name``: of client and region; unique among this user's processes; the default contains the process id.
        ``min_prefix_tokens``: shorter matches are computed. ``publish``: False to import only.
        ``publish_generated``: also publish blocks with generated tokens, for the next turn of a chat.
        ``model_id``, ``revision``, ``weights_digest``, ``tokenizer``: see ``spec_of``.
        ``import_timeout_s``: blocks not copied by then are computed. ``verify_one_in``: see ``Client``; of the client
        that the marketplace makes.
        ``mesh_socket``: of this node's kvmd-mesh, which is asked for blocks of other nodes; default
        /run/kvmd-mesh/UID/mesh.sock. Where there is none, it is not asked. ``mesh_wait_s``: a prompt waits so long for
        them; 0: never. ``prefill_tokens_per_s``: how fast the model computes a prompt; only what comes sooner is
        fetched. 0: unknown.

        UnsupportedError: a model whose cache is not made of KV blocks. Other KvErrors: see
        ``Client.declare_model`` and ``Client.allocate_region``.
        """
        self.model = model
        self._describe = functools.partial(
            spec_of, block_tokens=block_tokens, model_id=model_id, revision=revision, tokenizer=tokenizer
        )
        self._watch = WeightsWatch(model, skip=rope_buffers(model))
        self._computation = computation_digest(model)
        self.spec = self._describe(model, weights_digest=weights_digest)
        self._length_limit = static_positions(model.config)
        self._cache_argument = cache_argument(model)
        self._name = name or f"transformers-{os.getpid()}-{id(self):x}"
        self._pool_blocks = pool_blocks
        self._import_timeout_s = import_timeout_s
        self._mesh_socket, self._mesh_wait_s = mesh_socket, mesh_wait_s
        self._prefill_tokens_per_s = prefill_tokens_per_s
        self._refreshes = 0
        self._owns_client = client is None
        self.client = client or Client(socket_path, name=self._name, start_offline=True, verify_one_in=verify_one_in)
        self._min_prefix_tokens = min_prefix_tokens
        self._publish_enabled = publish
        self._publish_generated = publish_generated
        self._lock = threading.Lock()
        self._stats = MarketplaceStats()
        if self._owns_client:
            try:
                self.client.wait_connected(connect_timeout_s)
            except DeadlineExceededError:
                _log.warning("kvmd is not reachable yet (%s); computing without it until it is", self.client.last_error)
        self._open_pool()

    def _open_pool(self) -> None:
        spec = self.spec
        self._declared = self.client.declare_model(spec)
        shape = [self._pool_blocks, spec.num_layers, 2, spec.num_kv_heads, spec.block_tokens, spec.head_size]
        block_bytes = self.model.dtype.itemsize * shape[1] * shape[2] * shape[3] * shape[4] * shape[5]
        name = f"{self._name}.{self._refreshes}" if self._refreshes else self._name
        # Host memory: a model on a GPU copies to and from it. It is freed when this process ends,
        # since none adopts it.
        self.region = self.client.allocate_region(
            self._declared, Geometry.contiguous(self._pool_blocks, block_bytes), name=name, outlives_owner=False
        )
        self._store = HostStore(
            self.client, self.region, publish=self._publish_enabled, import_timeout_s=self._import_timeout_s
        )
        self._memory = view(self.region, shape, self.model.dtype)

    @property
    def stats(self) -> MarketplaceStats:
        """A copy of the counters."""
        with self._lock:
            return MarketplaceStats(
                **{**vars(self._stats), **vars(self._store.stats), "bypassed": Counter(self._stats.bypassed)}
            )

    def near_misses(self) -> list[NearMiss]:
        """Models of other processes that differ from this one in few fields: the reason why no block is shared."""
        return self.client.near_misses(self._declared)

    def new_cache(self) -> DynamicCache:
        """An empty cache for this model that keeps all tokens for publishing, also those beyond a sliding window."""
        return empty_cache(self.model.config)

    def fetch(self, token_ids: Any, *, lora: str | None = None, cache_salt: str | None = None) -> Prefix:
        """Import the longest published prefix of a prompt.

        ``token_ids``: [tokens] or [1, tokens]. ``lora``: name or digest of the adapter that is active.
        ``cache_salt``: shares only with requests of the same salt. At least one token is left to compute.
        Waits at most ``mesh_wait_s`` for other nodes, and ``import_timeout_s`` for the copy. An error of kvmd is not
        raised: it counts as a miss.
        """
        ids = _flat(token_ids)
        with self._lock:
            self._stats.prompt_tokens += len(ids)
            blocks: list[int] = []
            try:
                if self._stale(len(ids)) is None:
                    blocks = self._import(ids, _extras(lora, cache_salt))
            except KvError as error:
                self._note(error)
            tokens = len(blocks) * self.spec.block_tokens
            self._stats.reused_tokens += tokens
            return Prefix(cache_from_blocks(self.model.config, self._memory, blocks, self.model.device), tokens)

    def publish(
        self, token_ids: Any, cache: DynamicCache, *, lora: str | None = None, cache_salt: str | None = None
    ) -> int:
        """Publish all full blocks that ``cache`` holds of ``token_ids`` and that this process has not published yet.

        ``token_ids``: [tokens] or [1, tokens]; the cache may hold fewer. ``cache``: batch of 1, any DynamicCache
        of the model. No block is published from a cache that has dropped early tokens of a sliding window (one that
        neither ``new_cache`` nor ``fetch`` made), because the prefix would have a hole; after a change of the weights;
        and beyond the length from which a model's rotary embedding depends on the sequence's length. Returns the number
        of blocks.
        InvalidArgumentError: a cache of another model.
        """
        ids = _flat(token_ids)
        self._check_shape(cache)
        with self._lock:
            if self._stale(len(ids)) is not None:
                return 0
            try:
                return self._publish(ids[: cache.get_seq_length()], cache, _extras(lora, cache_salt))
            except KvError as error:
                self._note(error)
                return 0

    def generate(self, *args: Any, lora: str | None = None, cache_salt: str | None = None, **kwargs: Any) -> Any:
        """``model.generate(*args, **kwargs)`` that starts from the longest published prefix and publishes.

        Arguments and result are the model's. Requests that are not known to give the same result from a cached prefix
        (several sequences, beams, padding, a cache of the caller's, arguments that the tables of
        ``kvclient.transformers.request`` do not list, …) go to the model unchanged and are counted in
        ``stats.bypassed``.
        ``lora``, ``cache_salt``: see ``fetch``.
        """
        arguments = named_arguments(args, kwargs)
        reason = bypass_reason(self.model, arguments)
        ids = prompt_of(arguments)
        if lora is None and getattr(self.model, "peft_config", None):
            reason = reason or "unnamed_adapter"
        with self._lock:
            if reason is None and ids is not None:
                reason = self._stale(ids.shape[1])
            self._stats.requests += 1
            if reason:
                self._stats.bypassed[reason] += 1
        if reason or ids is None:
            return self.model.generate(*args, **kwargs)
        prefix = self.fetch(ids, lora=lora, cache_salt=cache_salt)
        if arguments.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(ids)
        # All of them are None here.
        kwargs = {name: value for name, value in kwargs.items() if name not in CACHE_ARGUMENTS}
        output = self.model.generate(*args, **{**kwargs, self._cache_argument: prefix.cache})
        if self._publish_enabled:
            sequence = output if isinstance(output, torch.Tensor) else output.sequences
            known = sequence[0] if self._publish_generated else ids[0]
            try:
                self.publish(known, prefix.cache, lora=lora, cache_salt=cache_salt)
            # The cache has another shape; the output is the model's and stays valid.
            except KvError as error:
                self._note(error)
        return output

    def refresh(self, *, weights_digest: str | None = None) -> bool:
        """Describe the model's weights and configuration again. False: they have not changed.

        Call it after a change in place (training, merging an adapter, loading other weights). If they differ, all
        published blocks are withdrawn, and an empty pool is registered under the new identity. ``weights_digest``: as
        in the constructor, for the present weights; by default all of them are read for their digest.
        Raises the constructor's errors; after one, no block is shared until the next ``refresh``.
        """
        with self._lock:
            self._computation = ""  # if anything fails from here on, the model counts as changed
            watch, computation = WeightsWatch(self.model, skip=rope_buffers(self.model)), computation_digest(self.model)
            spec = self._describe(self.model, weights_digest=weights_digest)
            if spec == self.spec and not self.region.closed:
                self._watch, self._computation = watch, computation
                return False
            self._withdraw()
            self.spec = spec
            self._length_limit = static_positions(self.model.config)
            self._refreshes += 1
            before = self._store.stats
            self._open_pool()
            self._store.stats = before  # cumulative
            self._watch, self._computation = watch, computation
            return True

    def close(self) -> None:
        """Take the pool out of the marketplace; waits up to two seconds for importers. Safe to call twice.

        ``generate()`` goes on without the marketplace afterwards.
        """
        with self._lock:
            self._withdraw()
            if self._owns_client:
                self.client.close()

    def __enter__(self) -> Marketplace:
        """Return the marketplace, which the constructor has opened."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    def _import(self, ids: list[int], extras: list[ExtraKey]) -> list[int]:
        """Blocks of this pool with the longest published prefix; peers' blocks are copied to it first."""
        block_tokens = self.spec.block_tokens
        usable = min((len(ids) - 1) // block_tokens, self._store.block_count)
        if usable * block_tokens < self._min_prefix_tokens or usable < 1:
            return []
        chain = KeyChain(self._declared, extras=extras)
        root = chain.parent
        keys = chain.extend(ids[: usable * block_tokens])
        if self._mesh_wait_s > 0 and has_mesh(self._mesh_socket):
            self.client.join_cache(
                keys,
                self.region,
                timeout_s=self._mesh_wait_s,
                min_blocks=-(-self._min_prefix_tokens // block_tokens),
                prefill_tokens_per_s=self._prefill_tokens_per_s,
                mesh_socket=self._mesh_socket,
            )
        return self._store.fetch(keys, root, min_blocks=-(-self._min_prefix_tokens // block_tokens))

    def _publish(self, ids: list[int], cache: DynamicCache, extras: list[ExtraKey]) -> int:
        chain = KeyChain(self._declared, extras=extras)
        root = chain.parent
        keys = chain.extend(ids)
        missing = self._store.missing(keys)
        if not missing or missing[0] * self.spec.block_tokens < first_token_held(cache):
            return 0

        def fill(indices: Sequence[int], blocks: Sequence[int]) -> None:
            for first, last in _runs(indices):
                blocks_from_cache(cache, indices[first], self._memory, list(blocks[first:last]))

        return self._store.store(keys, root, 0, missing, fill)

    def _stale(self, tokens: int) -> str | None:
        """The reason why a sequence of so many tokens must not be fetched or published now; None if it may be."""
        if self._computation != computation_digest(self.model):
            return "config_changed"
        if self._watch.changed():
            return "weights_changed"
        if self._length_limit is not None and tokens >= self._length_limit:
            return "rope_scaling"
        return None

    def _withdraw(self) -> None:
        if self.region.closed:
            return
        # Fails if kvmd has ended or an importer is slow; importers validate in both cases.
        with contextlib.suppress(KvError):
            self.region.unregister(2.0)
        self.region.close()

    def _check_shape(self, cache: DynamicCache) -> None:
        if len(cache.layers) != self.spec.num_layers:
            raise InvalidArgumentError(f"the cache has {len(cache.layers)} layers, the model {self.spec.num_layers}")
        heads, size = self.spec.num_kv_heads, self.spec.head_size
        for number, layer in enumerate(cache.layers):
            for states in (layer.keys, layer.values):
                if states is None or not states.numel():
                    continue
                if (*states.shape[:2], states.shape[-1]) != (1, heads, size) or states.dtype != self.model.dtype:
                    raise InvalidArgumentError(
                        f"layer {number} of the cache is {states.dtype} {list(states.shape)}, "
                        f"not {self.model.dtype} [1, {heads}, tokens, {size}]"
                    )

    def _note(self, error: KvError) -> None:
        self._stats.errors += 1
        _log.warning("computed without the marketplace: %s", error)


def _flat(token_ids: Any) -> list[int]:
    if isinstance(token_ids, torch.Tensor):
        if token_ids.dim() == 2 and token_ids.shape[0] == 1:
            token_ids = token_ids[0]
        if token_ids.dim() != 1:
            raise UnsupportedError(f"one sequence at a time, not {list(token_ids.shape)}")
        token_ids = token_ids.tolist()
    return [int(token) for token in token_ids]


def _extras(lora: str | None, cache_salt: str | None) -> list[ExtraKey]:
    extras = []
    if lora is not None:
        extras.append(ExtraKey(ExtraKey.Kind.LORA, lora))
    if cache_salt is not None:
        extras.append(ExtraKey(ExtraKey.Kind.CACHE_SALT, cache_salt))
    return extras


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Index ranges [first, last) of ``numbers`` within which they are consecutive."""
    cuts = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    return list(zip([0, *cuts], [*cuts, len(numbers)], strict=True))


__all__ = ["Marketplace", "MarketplaceStats", "Prefix"]
