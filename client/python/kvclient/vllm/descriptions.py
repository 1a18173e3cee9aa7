"""Descriptions: which tokens the engine's blocks have, told to this node's kvmd-mesh for its events.

The scheduler's thread only leaves what is to be told; a thread of its own tells it. A kvmd-mesh that was started anew
knows nothing, so what was told is remembered, up to a bound, and told again. Where no kvmd-mesh listens, or where it
publishes no events, nothing is remembered, and it is asked again now and then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvclient._native import BlockKey, BlockKeys, Client, ModelSpec
from kvclient.errors import KvError
from kvclient.mesh import has_mesh
from kvclient.vllm.options import ConnectorOptions

_log = logging.getLogger(__name__)

# Blocks that are remembered: 64 bytes each with 16 tokens a block, and those of their keys.
_MOST_BLOCKS = 1 << 18
# What waits to be told; more is left out, and told with the next request that has it.
_MOST_WAITING = 4096
# So often kvmd-mesh is told something again, to see whether it is still the same process; and so
# often it is looked for where it is not there or wants nothing.
_LOOK_S = 5.0
_TIMEOUT_S = 5.0
# After a description that was not taken.
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Description:
    """Consecutive blocks of one prefix."""

    spec: ModelSpec
    keys: BlockKeys  # of the first shard
    tokens: Sequence[int]  # of all of them
    adapter: str = ""


class Descriptions:
    """What the scheduler tells, and the thread that passes it on. ``tell`` and ``on``: of one thread."""

    def __init__(
        self,
        options: ConnectorOptions,
        *,
        most_blocks: int = _MOST_BLOCKS,
        look_s: float = _LOOK_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without a thread until something is told."""
        self._options, self._most_blocks, self._look_s, self._now = options, most_blocks, look_s, now
        self._client: Client | None = None
        self._new: deque[Description] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._listens, self._next_look = False, 0.0
        # Of the thread, except that `_unwanted_until` is read elsewhere.
        self._unwanted_until = 0.0
        self._told: OrderedDict[BlockKey, Description] = OrderedDict()  # by the last block's key
        self._blocks = 0
        self._process = 0

    @property
    def on(self) -> bool:
        """Whether there is a kvmd-mesh that may want to be told."""
        now = self._now()
        if now >= self._next_look:
            self._listens, self._next_look = has_mesh(self._options.mesh_socket), now + 1.0
        return self._listens and now >= self._unwanted_until

    def tell(self, client: Client, description: Description) -> None:
        """Tell kvmd-mesh of blocks, soon. Never waits."""
        if not len(description.keys) or len(description.keys) > self._most_blocks or self._closed:
            return
        with self._changed:
            self._client = client
            if len(self._new) >= _MOST_WAITING:
                self._new.popleft()
            self._new.append(description)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvclient-describe", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Tell nothing more. The thread ends by itself."""
        with self._changed:
            self._closed = True
            self._new.clear()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._new and not self._closed:
                    self._changed.wait(self._look_s)
                if self._closed:
                    return
                description = self._new.popleft() if self._new else None
                client = self._client
            if client is None:
                continue
            if description is not None:
                self._remember(description)
            elif self._told:
                description = next(reversed(self._told.values()))  # to see whose answer it is
            if description is not None and not self._pass_on(client, description):
                time.sleep(_PAUSE_S)

    def _pass_on(self, client: Client, description: Description) -> bool:
        """Tell of one, and of all again if the process is another one; False: not all was taken."""
        process = self._send(client, description)
        if process is None:
            self._process = 0
            return False
        if process in (0, self._process):
            return True
        for each in list(self._told.values()):
            if each is not description and self._send(client, each) != process:
                self._process = 0
                return False
        self._process = process
        return True

    def _send(self, client: Client, description: Description) -> int | None:
        """The process that has taken it; 0: it wants none. None: it was not taken."""
        try:
            outcome = client.describe_blocks(
                description.spec,
                description.keys,
                description.tokens,
                timeout_s=_TIMEOUT_S,
                adapter=description.adapter,
                mesh_socket=self._options.mesh_socket,
            )
        except KvError as error:
            _log.debug("kvclient: no description: %s", error)
            return None
        if not outcome.wanted:
            self._unwanted_until = self._now() + self._look_s
            self._told.clear()
            self._blocks = self._process = 0
            return 0
        return outcome.process if outcome.taken == len(description.keys) else None

    def _remember(self, description: Description) -> None:
        last = description.keys[-1]
        before = self._told.pop(last, None)
        self._blocks += len(description.keys) - (len(before.keys) if before is not None else 0)
        self._told[last] = description
        while self._blocks > self._most_blocks:
            _, oldest = self._told.popitem(last=False)
            self._blocks -= len(oldest.keys)


__all__ = ["Description", "Descriptions"]
