"""A small trained model in vLLM: the same answers and log-probabilities with the marketplace as without."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from kvclient.daemon import PrivateDaemon
from support import real_model
from support.forked_worker import ForkedWorker
from support.vllm_worker import BLOCK
from support.worker import Worker

if find_spec("vllm") is None:  # not imported: only the engines' processes need it
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)
pytestmark = pytest.mark.skipif(bool(real_model.missing()), reason=real_model.missing())

PROMPT, NEW = 600, 24
ROUNDING = 1e-3
BLOCKS = PROMPT // BLOCK


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Worker]]:
    """Without the connector; two with it."""
    workers: list[Worker] = []
    with PrivateDaemon() as daemon:
        for socket in (None, daemon.socket, daemon.socket):
            settings = {"max_model_len": 1024}
            workers.append(ForkedWorker("support.vllm_worker", socket, 80, {}, real_model.folder(), settings))
        yield workers
        for worker in workers:
            worker.stop()


def test_answers_with_an_imported_prefix_are_those_of_an_engine_alone(engines: list[Worker]) -> None:
    plain, first, second = engines
    common = real_model.text_tokens(PROMPT)
    # Another question about the same text, and another text before the same question.
    questions = [common + real_model.text_tokens(16, skipped) for skipped in (3000, 6000)]
    changed = real_model.text_tokens(PROMPT, 200) + questions[0][PROMPT:]

    first.call("log_probabilities", questions[0], 1)
    first.call("idle_step")
    question = questions[1]
    expected, likeliest, _ = plain.call("log_probabilities", question, NEW)
    answer, ours, cached = second.call("log_probabilities", question, NEW)
    assert cached == BLOCKS * BLOCK
    assert second.call("stats")["imported"] == BLOCKS
    assert answer == expected
    assert real_model.furthest(ours, likeliest) < ROUNDING
    assert second.call("kv_digests", question)[:BLOCKS] == first.call("kv_digests", questions[0])[:BLOCKS]
    _, other, _ = plain.call("log_probabilities", changed, 1)
    _, own, _ = plain.call("log_probabilities", questions[0], 1)
    # The text matters, so a wrong prefix would show
    assert real_model.furthest(other, own) > 100 * ROUNDING
