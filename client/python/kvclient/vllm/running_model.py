"""The model whose blocks an engine shares, as of the last look at it, and the keys of its requests' blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvclient._native import ModelSpec, Shard
from kvclient.vllm.engine_hashes import EngineHashes
from kvclient.vllm.keys import KeySource

_log = logging.getLogger(__name__)


class Now(NamedTuple):
    """The model that an engine runs at some time."""

    spec: ModelSpec | None  # None: not known at present
    registered: bool  # whether the workers' memory is registered under it
    #: How often the weights may have changed without having been measured before the next step.
    doubts: int = 0


#: ``model(reset)``. ``reset``: the prefix cache has been emptied. The same object as before means
#: that nothing has changed.
ModelNow = Callable[[bool], Now]
_ALWAYS = Now(None, True)


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
        scales: Sequence[int] = (),
    ) -> None:
        """``hashes``, ``scales``: see KeySource. ``now``: None: the model is always ``spec``."""
        self.spec, self.now = spec, now
        self.keys = KeySource(spec, shards, hashes, scales)
        self.keys.prepare()
        self.fingerprint = spec.fingerprint().hex
        #: Whether the keys of requests say what the engine's blocks hold.
        self.shares = True
        # The weights are known and memory is registered under them.
        self._known = True
        # The pool holds blocks that other weights have computed.
        self._mixed = False
        self._cache_map: Any = None
        self._seen: Now | None = None  # what ``now`` has answered
        # The pool holds blocks of before the last doubt.
        self._older = False
        self._doubts = 0  # as of the last look
        self._known_doubts = 0  # when the model was last known

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
        spec, registered, doubts = Now(*seen)
        unregistered = self._known and not registered
        self._known = registered and (spec is not None or self.now is None)
        renewed = spec is not None and spec is not self.spec and spec != self.spec
        self._cache_map = cache_map
        self._mixed = self._mixed and not reset
        empty = True
        if reset or unregistered or renewed or doubts != self._doubts:
            empty = reset or _is_empty(pool)
        self._doubt(doubts, spec is not None, reset=reset, empty=empty)
        if self._known_doubts and not self._older:
            empty = True  # what the pool holds was computed since, with the weights of now
        if spec is not None and renewed:
            self._renew(spec, empty=empty)
        self.shares = self._known and not self._mixed
        return Seen(reset, unregistered, renewed, empty) if reset or unregistered or renewed else NOTHING

    def _doubt(self, doubts: int, known: bool, *, reset: bool, empty: bool) -> None:
        """Steps go on while the weights are in doubt, and what they compute is not to pass for other weights'."""
        if doubts != self._doubts:
            self._older = not empty
            # Since it was last known, steps may have run with weights that are never measured
            self._mixed = self._mixed or (doubts > self._known_doubts + 1 and not empty)
        elif reset:
            self._older = False
        self._doubts = doubts
        if known:
            self._known_doubts = doubts

    @property
    def measuring(self) -> bool:
        """Whether the weights are in doubt, and are going to be known soon."""
        return self._doubts != self._known_doubts

    def _renew(self, spec: ModelSpec, *, empty: bool) -> None:
        self.spec, self.fingerprint = spec, spec.fingerprint().hex
        self.keys = KeySource(spec, self.keys.shards, self.keys.hashes, self.keys.scales)
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


__all__ = ["NOTHING", "ModelNow", "Now", "RunningModel", "Seen"]
