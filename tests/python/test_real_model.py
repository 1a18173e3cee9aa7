"""A small trained model in Transformers: the same answers and log-probabilities with the marketplace as without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvclient.daemon import PrivateDaemon
from support import real_model
from support.worker import Worker

pytestmark = pytest.mark.skipif(bool(real_model.missing()), reason=real_model.missing())

PROMPT, NEW = 600, 24
# Products of another shape round differently: a prompt that continues a prefix, against one
# computed in one piece.
ROUNDING = 1e-3


def test_answers_with_an_imported_prefix_are_those_of_the_model_alone(
    kvmd: PrivateDaemon, start_worker: Callable[..., Worker]
) -> None:
    folder = real_model.folder()
    first, second = (
        start_worker("support.real_model_worker", kvmd.socket, folder, name) for name in ("first", "second")
    )
    common = real_model.text_tokens(PROMPT)
    # Another question about the same text, and another text before the same question.
    questions = [common + real_model.text_tokens(16, skipped) for skipped in (3000, 6000)]
    changed = real_model.text_tokens(PROMPT, 200) + questions[0][PROMPT:]

    first.call("answer", questions[0], 1, True)
    for asked, question in enumerate(questions, 1):
        expected, likeliest = second.call("answer", question, NEW, False)
        answer, ours = second.call("answer", question, NEW, True)
        assert answer == expected
        assert real_model.furthest(ours, likeliest) < ROUNDING
        assert second.call("stats")["reused_tokens"] >= asked * (PROMPT - 16)
    _, other = second.call("answer", changed, NEW, False)
    _, own = second.call("answer", questions[0], NEW, False)
    # The text matters, so a wrong prefix would show
    assert real_model.furthest(other[:1], own[:1]) > 100 * ROUNDING
