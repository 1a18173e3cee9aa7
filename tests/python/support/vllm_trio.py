"""Three engines of one model: one alone, and two that share; and what tests compare of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from support.vllm_engines import Engines
from support.vllm_worker import BLOCK


class Trio:
    """``plain``: without the connector; ``first``, ``second``: with it, the second one with few blocks."""

    def __init__(
        self,
        socket: str,
        model: dict[str, Any],
        engine: dict[str, Any],
        *,
        tokens: int = BLOCK,
        few: int = 60,
        options: dict[str, Any] | None = None,
    ) -> None:
        """``engine``: arguments of all three. ``tokens``: of a block. ``few``: blocks of the second one."""
        self.tokens = tokens
        self._engines = Engines(
            {
                name: (where, blocks, options or {}, model, engine)
                for name, where, blocks in (("plain", None, 120), ("first", socket, 120), ("second", socket, few))
            }
        )

    def call(self, engine: str, function: str, *arguments: Any, **options: Any) -> Any:
        return self._engines[engine].call(function, *arguments, **options)

    def start(self, engine: str, function: str, *arguments: Any) -> Any:
        return self._engines[engine].start(function, *arguments)

    def end(self, engine: str) -> None:
        """One of them ends, and with it the memory that it has registered; it starts again when it is next called."""
        self._engines.pop(engine).stop()

    def stop(self) -> None:
        with contextlib.ExitStack() as ending:
            for worker in self._engines.values():
                ending.callback(worker.stop)

    def answer(self, engine: str, ids: list[int], tokens: int = 16) -> tuple[list[int], int]:
        [given] = self.call(engine, "generate", [ids], tokens)
        self.call(engine, "idle_step")
        return tuple(given)  # type: ignore[return-value]

    def answers(self, engine: str, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        return [given for given, _ in self.call(engine, "generate", prompts, tokens)]

    def full(self, ids: list[int]) -> int:
        """Tokens of the blocks that a request can find."""
        return (len(ids) - 1) // self.tokens * self.tokens

    def computed(self, ids: list[int]) -> list[dict[int, str]]:
        """Digests of the blocks that an engine alone computes, for each group."""
        self.call("plain", "generate", [ids], 1)
        return self.call("plain", "group_digests", ids)  # type: ignore[no-any-return]

    def traffic(self, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Answers of the one alone; those of the two that share, at once, and then of the second one, which imports."""
        expected = self.answers("plain", prompts, 8)
        before = self.call("second", "totals").get("imported_blocks", 0)
        calls = [self.start(name, "generate", prompts, 8) for name in ("first", "second")]
        given = [[tokens for tokens, _ in call()] for call in calls]
        given.append(self.answers("second", prompts, 8))
        assert self.call("second", "totals")["imported_blocks"] > before
        return expected, given

    def computes_what_failed(self, prompts: list[list[int]], every: int) -> None:
        """The second engine's answers are right although each ``every``-th block that it loads fails."""
        expected = self.answers("plain", prompts, 12)
        self.answers("first", prompts, 12)
        self.call("first", "idle_step")
        before = self.call("second", "totals").get("failed_blocks", 0)
        with self.failing("second", every):
            got = self.answers("second", prompts, 12)
        assert got == expected
        assert self.call("second", "totals")["failed_blocks"] > before

    @contextlib.contextmanager
    def failing(self, engine: str, every: int, **options: Any) -> Iterator[None]:
        """Each ``every``-th block of the engine's loads fails."""
        self.call(engine, "fail_loads", every, **options)
        try:
            yield
        finally:
            self.call(engine, "fail_loads", 0)

    def forget(self, engine: str) -> None:
        """Empty its prefix cache; the first step after that looks nothing up, and is made here."""
        self.call(engine, "reset_prefix_cache")
        self.call(engine, "generate", [list(range(5, 25))], 1)


__all__ = ["Trio"]
