"""How much of a request is imported: what is found, and whether to wait for what is not found yet."""

from __future__ import annotations

import logging
import time

from kvclient._native import Client
from kvclient.errors import KvError
from kvclient.vllm.computing import Computing
from kvclient.vllm.equal_prefixes import EqualPrefixes
from kvclient.vllm.joins import Joins
from kvclient.vllm.lookups import Lookups
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.stats import Counters
from kvclient.vllm.tracked import TrackedRequest
from kvclient.vllm.wishes import source_hint_of

_log = logging.getLogger(__name__)


class Admission:
    """Of one engine. Not thread-safe."""

    def __init__(
        self,
        options: ConnectorOptions,
        client: Client,
        lookups: Lookups,
        computing: Computing,
        joins: Joins | None,
        equal: EqualPrefixes,
        counters: Counters,
        block_tokens: int,
        *,
        include_own: bool,
        names: int = 1,
    ) -> None:
        """``computing``: marks of prompts. ``joins``: None: kvmd-mesh is never asked. ``equal``: imports under way.

        ``block_tokens``: of blocks as ``lookups`` counts them, each of so many ``names`` (RequestKeys.ends).
        Counts in ``counters``. ``include_own``: see SchedulerSide.attach.
        """
        self._options, self._client, self._lookups = options, client, lookups
        self._computing, self._joins, self._equal, self._counters = computing, joins, equal, counters
        self._block_tokens, self._block_names, self._include_own = block_tokens, names, include_own
        self._min_tokens = max(options.min_prefix_tokens, 1)

    def tokens(self, tracked: TrackedRequest, computed: int, now: float) -> int | None:
        """How many tokens after the first ``computed`` are imported; None: ask again.

        The last token is computed in any case, and with it its block. ``now``: time.perf_counter's, from which on the
        counters' time runs.
        """
        size, equal = self._block_tokens, self._equal
        first = computed // size
        last = self._lookups.last(tracked.request.num_tokens)
        if last <= first or (last - first) * size < self._min_tokens:
            self._counters.looked_up(0, 0, time.perf_counter() - now)
            return 0
        others = equal.any
        if others and equal.waits_still(tracked, now):
            return None
        found = self._lookups.found(tracked.keys, first, last)
        if others and equal.waits(tracked, first, found, last, now):
            return None
        if first + found < last and self._waits(tracked, first, found, last, now):
            return None
        tokens = found * size
        if tokens < self._min_tokens:
            tokens = 0
        self._counters.looked_up((last - first) * size, tokens, time.perf_counter() - now)
        return tokens

    def _waits(self, tracked: TrackedRequest, first: int, found: int, last: int, now: float) -> bool:
        """Whether the request is to be asked for again: somebody may bring the blocks after the found ones."""
        if first + found < min(self._lookups.longest(tracked.prefilled), last):
            tracked.first_asked = tracked.first_asked or now
            if now - tracked.first_asked < self._options.prefill_wait_s:
                return True
        if self._computing.on and self._waits_for_others(tracked, first, found, last, now):
            return True
        return self._joins is not None and self._waits_for_join(self._joins, tracked, first + found, last)

    def _waits_for_others(self, tracked: TrackedRequest, first: int, found: int, last: int, now: float) -> bool:
        """Whether another engine is computing the request's next block."""
        keys = tracked.keys.ends(first, last, self._block_names)
        least = -(-self._options.min_prefix_tokens // self._block_tokens) - found
        try:
            return self._computing.waits(
                self._client, tracked.request.request_id, keys, found, least, now, include_own=self._include_own
            )
        except KvError as error:
            _log.warning("kvclient: no lookup: %s", error)
            return False

    def _waits_for_join(self, joins: Joins, tracked: TrackedRequest, found: int, last: int) -> bool:
        """Whether kvmd-mesh is asked for the blocks after ``found`` ones."""
        if (last - found) * self._block_tokens < self._options.min_prefix_tokens:
            return False
        request_id = tracked.request.request_id
        if not joins.may_wait(request_id):
            return False
        source = source_hint_of(tracked.request)
        return joins.waits(request_id, [each[:last] for each in tracked.keys.upto(last)], found, source)


__all__ = ["Admission"]
