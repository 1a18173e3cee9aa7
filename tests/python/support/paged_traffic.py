"""A process with a small engine (paged_engine.py) under random requests."""

from __future__ import annotations

import random
from collections.abc import Sequence

from support.paged_engine import Engine
from support.paged_pool import BLOCK_TOKENS
from support.paged_step import Output


class RandomTraffic:
    """An engine under requests that share prefixes with those of other processes that have the same ``family`` seed."""

    def __init__(
        self,
        socket: str,
        name: str,
        seed: int,
        ahead: int,
        load: str,
        blocks: int,
        runner: str,
        zeroes: bool,
        windows: Sequence[int],
    ) -> None:
        self.engine = Engine(
            socket, name, seed, ahead=ahead, load=load, blocks=blocks, runner=runner, zeroes=zeroes, windows=windows
        )
        family = random.Random(7)
        self._prefixes = [[family.randrange(50) for _ in range(4 * BLOCK_TOKENS)] for _ in range(12)]

    def run(self, steps: int) -> dict[str, int]:
        engine, dice = self.engine, self.engine.random
        for _ in range(steps):
            while len(engine.waiting) < 3:
                tokens = list(dice.choice(self._prefixes))
                for _ in range(dice.randrange(3)):
                    tokens += self._prefixes[dice.randrange(3)][: dice.randrange(1, 3 * BLOCK_TOKENS)]
                engine.submit(tokens, dice.randrange(1, 14))
            engine.step()
            if dice.random() < 0.001:
                for request in list(engine.running):
                    engine._preempt(request, Output())
                engine.pool.reset()
        engine.drain()
        stats = engine.client.stats()
        return {
            "finished": engine.finished,
            "accepted": engine.accepted,
            "wrong": engine.wrong,
            "read_wrong": engine.worker.read_wrong,
            "published_wrong": engine.worker.published_wrong,
            "published_loaded": engine.worker.published_loaded,
            "published_loaded_wrong": engine.worker.published_loaded_wrong,
            "written_readable": engine.worker.written_readable,
            "passed_over": engine.passed_over,
            "preempted": engine.preempted,
            "dropped": engine.dropped,
            "asked_to_wait": engine.asked_to_wait,
            "failed": stats.blocks_failed,
            "imported": stats.blocks_imported,
            "published": stats.blocks_published,
        }


def make(
    socket: str,
    name: str,
    seed: int,
    ahead: int,
    load: str,
    blocks: int,
    runner: str,
    zeroes: bool,
    windows: Sequence[int] = (0,),
) -> RandomTraffic:
    return RandomTraffic(socket, name, seed, ahead, load, blocks, runner, zeroes, windows)
