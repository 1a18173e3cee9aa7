"""The connector's two sides under a model of scheduler, block pool and worker: no stale block is accepted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvclient.daemon import PrivateDaemon
from support.paged_tables import STATE, chunks
from support.worker import Worker

ROUNDS = 1500


def run_without_a_wrong_block(engines: list[Worker]) -> list[dict[str, int]]:
    """Run all engines at once; what each has counted, which shows that it had enough to do."""
    calls = [engine.start("run", ROUNDS) for engine in engines]
    results = [call() for call in calls]
    for result in results:
        for count in (
            "wrong",
            "read_wrong",
            "published_wrong",
            "published_loaded_wrong",
            "written_readable",
            "passed_over",
        ):
            assert result[count] == 0, result
        assert result["finished"] > 100, result
        assert result["preempted"] > 10, result
        assert result["imported"] > 100, result
        assert result["published"] > 100, result
    return results


@pytest.mark.parametrize(
    ("load", "ahead", "runner", "zeroes"),
    [
        ("async", 0, "v1", False),
        ("async", 1, "v1", True),
        ("async", 1, "v2", False),
        ("async", 1, "v2", True),
        ("sync", 0, "v1", True),
    ],
)
def test_no_stale_block_is_accepted(
    kvmd: PrivateDaemon, start_worker: Callable[..., Worker], load: str, ahead: int, runner: str, zeroes: bool
) -> None:
    engines = [
        start_worker(
            "support.paged_traffic", kvmd.socket, f"engine-{i}", 10 * i + ahead, ahead, load, 40, runner, zeroes
        )
        for i in range(2)
    ]
    results = run_without_a_wrong_block(engines)
    # Owners reused blocks under way often enough to matter.
    assert sum(result["failed"] for result in results) > 10, results


@pytest.mark.parametrize(
    ("windows", "blocks", "runner", "zeroes"),
    [
        ((0, 9), 70, "v1", False),
        ((0, 9), 70, "v2", True),
        ((6, 0, 14), 90, "v2", True),
        ((9,), 30, "v1", False),
        ((STATE, 0), 60, "v1", False),
        ((STATE, 0, STATE), 70, "v2", True),
        ((chunks(12), 0), 70, "v1", False),
        ((chunks(8), 0, 9, chunks(20)), 100, "v2", True),
    ],
)
def test_no_stale_block_is_accepted_of_any_group(
    kvmd: PrivateDaemon,
    start_worker: Callable[..., Worker],
    windows: tuple[int, ...],
    blocks: int,
    runner: str,
    zeroes: bool,
) -> None:
    """Several KV-cache groups, or a window alone: blocks go from group to group, and windows leave them early.

    And so do chunks that have ended.
    """
    engines = [
        start_worker(
            "support.paged_traffic", kvmd.socket, f"engine-{i}", 10 * i, 1, "async", blocks, runner, zeroes, windows
        )
        for i in range(2)
    ]
    results = run_without_a_wrong_block(engines)
    assert sum(result["dropped"] for result in results) > 5, results
