"""After many failed loads in a row none is tried for a while; one that succeeds ends the row."""

from __future__ import annotations

from kvclient.vllm.failed_loads import FailedLoads


def failing(times: int) -> FailedLoads:
    loads = FailedLoads()
    for _ in range(times):
        loads.failed(100.0)
    return loads


def test_loads_pause_after_eight_failures_in_a_row_for_a_minute() -> None:
    assert failing(7).paused_until <= 100.0
    loads = failing(8)
    assert loads.paused_until > 100.0
    assert loads.paused_until > 159.9
    assert loads.paused_until <= 160.0


def test_the_first_load_after_a_pause_decides_whether_there_is_another() -> None:
    loads = failing(8)
    loads.failed(160.0)
    assert loads.paused_until > 219.9
    loads.succeeded()
    loads.failed(220.0)
    assert loads.paused_until <= 220.0


def test_a_success_ends_the_row() -> None:
    loads = failing(7)
    loads.succeeded()
    loads.failed(100.0)
    assert loads.paused_until <= 100.0


def test_what_is_forgotten_pauses_nothing() -> None:
    loads = failing(8)
    loads.forget()
    assert loads.paused_until <= 100.0
