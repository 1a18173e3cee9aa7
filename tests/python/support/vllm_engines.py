"""Real vLLM engines of a test, each in a process of its own, and prompts for them."""

from __future__ import annotations

from support.forked_worker import ForkedWorker

ENGINE = "support.vllm_worker"


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(7 * i * i + 13 * i + 101 * seed) % 500 + 5 for i in range(length)]


class Engines(dict[str, ForkedWorker]):
    """Engines' processes by name; one starts when a test first uses it."""

    def __init__(self, arguments: dict[str, tuple[object, ...]]) -> None:
        super().__init__()
        self._arguments = arguments

    def __missing__(self, name: str) -> ForkedWorker:
        self[name] = ForkedWorker(ENGINE, *self._arguments[name])
        return self[name]
