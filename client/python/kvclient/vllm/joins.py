"""Joins: blocks of other nodes, which this node's kvmd-mesh brings here before a request is looked up again.

A worker has the region that says what blocks look like, so each shard is joined by a worker: the plan of a step names
the requests, a thread of the worker asks kvmd-mesh, and the worker's report says when it has answered. Meanwhile the
scheduler's thread goes on: vLLM asks for the request again in each step, until ``mesh_wait_s`` has passed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from kvclient._native import BlockKeys, Client, Region
from kvclient.errors import KvError
from kvclient.mesh import has_mesh
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.plan import Join

_log = logging.getLogger(__name__)

# Joins at a time, each on a thread that waits; the blocks of further requests are not asked for.
_MOST_AT_ONCE = 16
# After so many joins in a row that took too long and brought nothing, none is tried for a while.
_MOST_LATE = 4
_PAUSE_S = 60.0
# Where no kvmd-mesh listens, so often it is looked for.
_LOOK_S = 1.0


@dataclass
class _Waiting:
    until: float
    left: int  # shards that are not joined yet


class Joins:
    """The scheduler's side: which requests wait for blocks of other nodes. Not thread-safe."""

    def __init__(self, options: ConnectorOptions, now: Callable[[], float] = time.monotonic) -> None:
        """Nothing waits. ``now``: the clock."""
        self._options, self._now = options, now
        self._listens, self._next_look = False, 0.0
        self._waiting: dict[str, _Waiting] = {}
        self._asked: set[str] = set()  # requests that have been joined, or were not worth it
        self._new: list[Join] = []
        self._late = 0
        self._paused_until = 0.0

    @property
    def on(self) -> bool:
        """Whether there is a kvmd-mesh to ask."""
        if self._options.mesh_wait_s <= 0:
            return False
        now = self._now()
        if now >= self._next_look:
            self._listens, self._next_look = has_mesh(self._options.mesh_socket), now + _LOOK_S
        return self._listens

    def may_wait(self, request_id: str) -> bool:
        """Whether ``waits`` depends on the request's keys, which then have to be put together."""
        if request_id in self._waiting:
            return True
        if request_id in self._asked or not self.on or self._now() < self._paused_until:
            return False
        return len(self._waiting) < _MOST_AT_ONCE

    def waits(self, request_id: str, keys: Sequence[BlockKeys], found: int, source: str = "") -> bool:
        """Whether the request has to wait for a join; the first call begins it.

        ``keys``: for each shard, of all blocks that the request can use; ``found``: how many leading ones are here.
        ``source``: a host that a router says has them.
        """
        waiting = self._waiting.get(request_id)
        if waiting is not None:
            if self._now() < waiting.until:
                return True
            self._end(request_id, late=True)
            return False
        if not self.may_wait(request_id):
            return False
        self._asked.add(request_id)
        self._waiting[request_id] = _Waiting(self._now() + self._options.mesh_wait_s, len(keys))
        self._new.append(Join(request_id, list(keys), found, source))
        return True

    def take(self) -> list[Join]:
        """Joins for the workers to begin with the next step."""
        new, self._new = self._new, []
        return new

    def joined(self, request_id: str, fetched: int) -> None:
        """One shard's join has ended, and brought ``fetched`` blocks here, maybe too late for the request."""
        if fetched:
            self._late = 0
        waiting = self._waiting.get(request_id)
        if waiting is not None:
            waiting.left -= 1
            if not waiting.left:
                self._end(request_id, late=False)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._waiting.pop(request_id, None)
        self._asked.discard(request_id)
        self._new = [join for join in self._new if join.request_id != request_id]

    def _end(self, request_id: str, *, late: bool) -> None:
        del self._waiting[request_id]
        self._new = [join for join in self._new if join.request_id != request_id]
        self._late = self._late + 1 if late else 0
        if self._late >= _MOST_LATE:
            self._late -= 1  # the next join decides anew
            self._paused_until = self._now() + _PAUSE_S
            _log.warning(
                "kvclient: kvmd-mesh did not answer %d requests in time, so it is not asked for %.0f s",
                _MOST_LATE,
                _PAUSE_S,
            )


class WorkerJoins:
    """The worker's side: asks kvmd-mesh on threads of its own. Called by one thread."""

    def __init__(self, options: ConnectorOptions) -> None:
        """Without threads until the first join."""
        self._options = options
        self._threads: ThreadPoolExecutor | None = None
        self._running: list[tuple[str, Future[int]]] = []

    def start(self, client: Client, region: Region, join: Join, keys: BlockKeys) -> None:
        """Ask for the blocks of ``keys``, one shard's."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="kvclient-join")
        self._running.append((join.request_id, self._threads.submit(self._join, client, region, join, keys)))

    def ended(self) -> list[tuple[str, int]]:
        """Requests whose join has ended since the last call, and how many blocks it brought."""
        running, self._running = self._running, []
        done = []
        for request_id, future in running:
            if future.done():
                done.append((request_id, 0 if future.cancelled() else future.result()))
            else:
                self._running.append((request_id, future))
        return done

    def close(self) -> None:
        """Begin no further join; those under way end by their deadline."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def _join(self, client: Client, region: Region, join: Join, keys: BlockKeys) -> int:
        try:
            outcome = client.join_cache(
                keys,
                region,
                timeout_s=self._options.mesh_wait_s,
                min_blocks=join.found + 1,
                source_hint=join.source,
                prefill_tokens_per_s=self._options.prefill_tokens_per_s,
                mesh_socket=self._options.mesh_socket,
            )
            _log.debug("kvclient: join: %r", outcome)
            return outcome.fetched
        except KvError as error:
            _log.warning("kvclient: no join: %s", error)
            return 0


__all__ = ["Joins", "WorkerJoins"]
