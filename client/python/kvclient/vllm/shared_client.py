"""One client for the two sides of an engine that has both in one process."""

from __future__ import annotations

import logging
import threading
from typing import ClassVar

from kvclient._native import Client
from kvclient.errors import KvError

_log = logging.getLogger("vllm.kvclient")


class SharedClient:
    """One client for the scheduler and the worker of an engine in one process: it knows the engine's own blocks."""

    _all: ClassVar[dict[tuple[str, str], SharedClient]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, client: Client) -> None:
        """Without users."""
        self.client = client
        self.users = 0

    @classmethod
    def take(cls, socket: str, name: str, *, lookup_only: bool, verify_one_in: int = 0) -> Client:
        """The client of that name; a new one if there is none. ``lookup_only``: it need not import.

        ``verify_one_in``: of a new one.
        """
        with cls._lock:
            shared = cls._all.get((socket, name))
            if shared is None:
                client = Client(
                    socket,
                    name=name,
                    start_offline=True,
                    map_payload=not lookup_only,
                    verify_one_in=verify_one_in,
                )
                try:
                    client.wait_connected(1.0)
                except KvError as error:
                    _log.warning("no kvmd at %s yet (%s); the engine goes on without", socket, error)
                shared = cls._all[(socket, name)] = cls(client)
            shared.users += 1
            return shared.client

    @classmethod
    def give_back(cls, socket: str, name: str) -> None:
        """One user less; without any, the client is closed."""
        with cls._lock:
            shared = cls._all[(socket, name)]
            shared.users -= 1
            if shared.users == 0:
                del cls._all[(socket, name)]
                shared.client.close()


__all__ = ["SharedClient"]
