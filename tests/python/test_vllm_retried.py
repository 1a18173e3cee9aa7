"""Parts of the vLLM connector that need no daemon: calls that are tried again, the log of near misses, runners."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kvclient.errors import DeadlineExceededError, InvalidArgumentError, KvError, UnavailableError
from kvclient.vllm import near_misses, retried
from kvclient.vllm.near_misses import NearMissLog
from kvclient.vllm.retried import Retried
from kvclient.vllm.runner import is_v2_runner, uses_v2_runner
from support.waiting import eventually


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried, "_FIRST_PAUSE_S", 0.001)


def raising(*errors: Exception) -> Callable[[], str]:
    """A call that raises ``errors``, one each time, then returns."""
    left = list(errors)

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "memory"

    return attempt


# ---- retried ----


@pytest.mark.parametrize("error", [DeadlineExceededError, UnavailableError])
def test_a_call_without_an_answer_is_tried_until_there_is_one(error: type[KvError]) -> None:
    made = Retried("a test", raising(error("1"), error("2"), error("3")))
    eventually(lambda: made.result() == "memory")


def test_any_other_error_of_the_first_try_is_raised_at_once() -> None:
    with pytest.raises(InvalidArgumentError):
        Retried("a test", raising(InvalidArgumentError("wrong")))


def failed(made: Retried[str]) -> bool:
    try:
        made.result()
    except InvalidArgumentError:
        return True
    return False


def test_any_other_error_of_a_later_try_ends_the_tries_and_is_raised_by_the_result() -> None:
    made = Retried("a test", raising(UnavailableError("away"), InvalidArgumentError("wrong")))
    eventually(lambda: failed(made))
    assert failed(made)


def test_a_result_that_came_before_the_end_stays() -> None:
    made = Retried("a test", raising())
    made.cancel()
    assert made.result() == "memory"


def test_a_result_that_can_not_be_discarded_ends_its_thread_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    came, may_return = threading.Event(), threading.Event()
    attempts = raising(UnavailableError("away"))

    def attempt() -> str:
        result = attempts()
        came.set()
        assert may_return.wait(30.0)
        return result

    def discard(_: str) -> None:
        raise UnavailableError("away again")

    made = Retried("a test", attempt, discard)
    assert came.wait(30.0)
    made.cancel()
    may_return.set()
    eventually(lambda: all(each.name != "kvclient-retry" for each in threading.enumerate()))
    assert raised == []


def test_the_tries_do_not_keep_a_process_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retried, "_FIRST_PAUSE_S", 60.0)
    made = Retried("a test", raising(UnavailableError("away")))
    assert [each.daemon for each in threading.enumerate() if each.name == "kvclient-retry"] == [True]
    made.cancel()


# ---- near misses ----


def declared(name: str, fields: int = 1) -> Any:
    """A near miss as ``Client.near_misses`` gives it, that differs in so many fields."""
    theirs = SimpleNamespace(model_id=name, fingerprint=lambda: SimpleNamespace(hex=name))
    differences = [SimpleNamespace(field=f"field{number}", ours="1", theirs="2") for number in range(fields)]
    return SimpleNamespace(theirs=theirs, differences=differences)


class Node:
    """A client that has near misses, and counts who looks."""

    def __init__(self, *misses: Any) -> None:
        self.misses, self.looks, self.closed = misses, 0, False

    def near_misses(self, _: Any) -> list[Any]:
        self.looks += 1
        if self.closed:
            raise UnavailableError("closed")
        return list(self.misses)


def look(log: NearMissLog, node: Node, model: str = "ours") -> None:
    log.look(node, SimpleNamespace(fingerprint=SimpleNamespace(hex=model)))  # type: ignore[arg-type]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vllm.kvclient"]


def test_the_model_table_is_not_read_with_every_step() -> None:
    log, node = NearMissLog(), Node()
    for _ in range(100):
        look(log, node)
    assert node.looks == 1


def test_each_near_miss_is_logged_once_for_each_model_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(near_misses, "_PERIOD_S", 0.0)
    log, node = NearMissLog(), Node(declared("a"))
    for model in ("ours", "ours", "with new weights"):
        look(log, node, model)
    assert len(lines(caplog)) == 2


def test_models_that_differ_in_many_fields_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    look(NearMissLog(), Node(declared("few", near_misses._MOST_FIELDS), declared("many", near_misses._MOST_FIELDS + 1)))
    assert ["model few shares nothing" in line for line in lines(caplog)] == [True]


def test_the_log_of_near_misses_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(near_misses, "_PERIOD_S", 0.0)
    log, node = NearMissLog(), Node(*(declared(str(number)) for number in range(3 * near_misses._MOST_LINES)))
    look(log, node)
    look(log, node)
    assert len(lines(caplog)) == near_misses._MOST_LINES
    assert node.looks == 1


def test_a_client_that_is_being_closed_has_no_near_misses() -> None:
    node = Node()
    node.closed = True
    look(NearMissLog(), node)


# ---- runners ----


def test_a_variable_with_blanks_or_capitals_is_read_as_vllm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in ((" 0 ", False), ("FALSE", False), (" 1", True)):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        assert uses_v2_runner(SimpleNamespace()) == wanted, value


def test_the_runner_of_a_worker_is_told_by_its_module() -> None:
    assert is_v2_runner("vllm.v1.worker.gpu.model_runner")
    assert not is_v2_runner("vllm.v1.worker.gpu_model_runner")
    assert not is_v2_runner("vllm.v1.worker.cpu_model_runner")
