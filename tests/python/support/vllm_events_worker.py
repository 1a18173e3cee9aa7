"""A process with a real vLLM engine that publishes KV events, which are kept for the test."""

from __future__ import annotations

from typing import Any

from support.vllm_worker import PRELOAD, VllmWorker


class EventsWorker(VllmWorker):
    def __init__(self, socket: str, blocks: int, options: dict[str, Any]) -> None:
        from vllm.config.kv_events import KVEventsConfig

        events = KVEventsConfig(enable_kv_cache_events=True, publisher="null")
        super().__init__(socket, blocks, options, {}, {"kv_events_config": events})
        self._events: list[dict[str, Any]] = []
        self._core.scheduler.kv_event_publisher.publish = self._keep

    def _keep(self, batch: Any) -> None:
        for event in batch.events:
            fields = {name: getattr(event, name) for name in event.__struct_fields__}
            self._events.append({"type": type(event).__name__, **fields})

    def take_events(self) -> list[dict[str, Any]]:
        """All since the last call, in order, with the names of their types and fields."""
        taken, self._events = self._events, []
        return taken


def make(socket: str, blocks: int, options: dict[str, Any]) -> EventsWorker:
    return EventsWorker(socket, blocks, options)


__all__ = ["PRELOAD", "EventsWorker", "make"]
