"""A peer that publishes whatever keys a test wants to be found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kvclient
from kvclient import BlockKeys


@contextmanager
def publishing_peer(socket: str, spec: kvclient.ModelSpec) -> Iterator[Callable[[Any], None]]:
    """``publish(keys)``: blocks of these keys can be found from then on, 64 in all."""
    client = kvclient.Client(socket, name="peer")
    region = client.allocate_region(client.declare_model(spec), kvclient.Geometry.contiguous(64, 16), name="peer")
    used = 0

    def publish(keys: Any) -> None:
        nonlocal used
        writes = region.begin_writes(list(range(used, used + len(keys))))
        used += len(keys)
        region.publish_run(BlockKeys(keys), keys[0], 0, writes)
        region.flush()

    yield publish
    client.close()


__all__ = ["publishing_peer"]
