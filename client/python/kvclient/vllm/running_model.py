"""The model whose blocks an engine shares, as of the last look at it, and the keys of its requests' blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvclient._native import ModelSpec, Shard
from kvclient.vllm.engine_hashes import EngineHashes
from kvclient.vllm.keys import KeySource

_log = logging.getLogger(__name__)

#: ``model(reset)``: the spec of the model that the engine runs now (None: not known at present),
#: and whether the workers' memory is registered under it. ``reset``: the prefix cache has been
#: emptied. The same object as before means that nothing has changed.
ModelNow = Callable[[bool], tuple[ModelSpec | None, bool]]
_ALWAYS: tuple[ModelSpec | None, bool] = (None, True)


@dataclass(frozen=True)
class Seen:
    """What has changed since the last look."""

    reset: bool = False  # the engine has emptied its prefix cache
    unregistered: bool = False  # what was published has left with the memory that was registered
    renewed: bool = False  # the weights are others, and with them the keys
    # Of renewed ones: nothing in the pool was computed with the weights before
    empty: bool = True


#: Nothing has changed.
NOTHING = Seen()


class RunningModel:
    """Not thread-safe."""

    def __init__(
        self,
        spec: ModelSpec,
        shards: Sequence[Shard],
        hashes: EngineHashes | None = None,
        now: ModelNow | None = None,
    ) -> None:
        """``hashes``: see KeySource. ``now``: None: the model is always ``spec``."""
        self.spec, self.now = spec, now
        self.keys = KeySource(spec, shards, hashes)
        self.keys.prepare()
        self.fingerprint = spec.fingerprint().hex
        #: Whether the keys of requests say what the engine's blocks hold.
        self.shares = True
        # The weights are known and memory is registered under them.
        self._known = True
        # The pool holds blocks that other weights have computed.
        self._mixed = False
        self._cache_map: Any = None
        self._seen: tuple[ModelSpec | None, bool] | None = None  # what ``now`` has answered

    def bind(self, pool: Any) -> None:
        """``pool``: vLLM's BlockPool, whose prefix cache is empty."""
        self._cache_map = pool.cached_block_hash_to_block

    def look(self, pool: Any) -> Seen:
        """Whether the engine has emptied its prefix cache, or has other weights."""
        # A reset makes a new map.
        cache_map = pool.cached_block_hash_to_block
        reset = cache_map is not self._cache_map
        seen = self.now(reset) if self.now is not None else _ALWAYS
        if seen is self._seen and not reset:
            return NOTHING
        self._seen = seen
        spec, registered = seen
        unregistered = self._known and not registered
        self._known = registered and (spec is not None or self.now is None)
        renewed = spec is not None and spec is not self.spec and spec != self.spec
        self._cache_map = cache_map
        self._mixed = self._mixed and not reset
        empty = True
        if reset or unregistered or renewed:
            empty = reset or _is_empty(pool)
        if spec is not None and renewed:
            self._renew(spec, empty=empty)
        self.shares = self._known and not self._mixed
        return Seen(reset, unregistered, renewed, empty) if reset or unregistered or renewed else NOTHING

    def _renew(self, spec: ModelSpec, *, empty: bool) -> None:
        self.spec, self.fingerprint = spec, spec.fingerprint().hex
        self.keys = KeySource(spec, self.keys.shards, self.keys.hashes)
        self.keys.prepare()
        self._mixed = not empty
        if self._mixed:
            _log.warning(
                "kvclient: the weights have been changed under a prefix cache that holds blocks of the old ones; "
                "nothing is shared until it is reset (reset_prefix_cache)"
            )


def _is_empty(pool: Any) -> bool:
    """Whether no block of the pool is in use or cached."""
    return not len(pool.cached_block_hash_to_block) and pool.get_num_free_blocks() >= pool.num_gpu_blocks - 1


__all__ = ["NOTHING", "ModelNow", "RunningModel", "Seen"]
