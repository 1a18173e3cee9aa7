"""Real engines of a hybrid model whose connector is a MultiConnector: ours and one that keeps blocks, in each order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon
from support.small_models import GEMMA
from support.vllm_engines import Engines, prompt
from support.vllm_worker import BLOCK
from support.worker import Worker

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)

NAMES = ("ours first", "ours last")


def both(socket: str, name: str) -> dict[str, Any]:
    ours = {
        "kv_connector": "KvMarketConnector",
        "kv_connector_module_path": "kvclient.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": socket, "min_prefix_tokens": BLOCK},
    }
    keeping = {
        "kv_connector": "KeepingConnector",
        "kv_connector_module_path": "support.keeping_connector",
        "kv_role": "kv_both",
    }
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [ours, keeping] if name == "ours first" else [keeping, ours]},
    }


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Worker]]:
    with PrivateDaemon() as daemon:
        workers = Engines(
            {name: (None, 120, {}, GEMMA, {"kv_transfer_config": both(daemon.socket, name)}) for name in NAMES}
        )
        yield workers
        with contextlib.ExitStack() as ending:
            for worker in workers.values():
                ending.callback(worker.stop)


def other(name: str) -> str:
    return NAMES[1 - NAMES.index(name)]


def computed(engine: Worker, ids: list[int], tokens: int = 12) -> list[int]:
    """Computed by an engine, for which ours neither publishes nor imports."""
    [(answer, cached)] = engine.call("generate", [ids], tokens, params={"kvmarket": False})
    engine.call("idle_step")
    assert cached == 0
    return list(answer)


def forget(engine: Worker) -> None:
    """Empty the engine's own cache; the first step after that looks nothing up."""
    engine.call("reset_prefix_cache")
    engine.call("generate", [prompt(20, seed=90)], 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_an_engine_beside_another_connector_computes_is_imported_by_its_peer(
    engines: dict[str, Worker], name: str
) -> None:
    ids = prompt(203, seed=NAMES.index(name))
    first, second = engines[name], engines[other(name)]
    [(expected, cached)] = first.call("generate", [ids], 12)
    first.call("idle_step")
    assert cached == 0
    before = second.call("stats")["imported"]
    assert second.call("generate", [ids], 12) == [(expected, 6 * BLOCK)]
    assert second.call("stats")["imported"] - before == 6 + 2 * 2
    assert first.call("group_digests", ids) == second.call("group_digests", ids)


@pytest.mark.parametrize(("name", "fails"), [(name, fails) for name in NAMES for fails in (False, True)])
def test_what_the_other_connector_loads_is_published(engines: dict[str, Worker], name: str, fails: bool) -> None:
    """And if its load fails, what is computed instead."""
    ids = prompt(203, seed=10 + 2 * NAMES.index(name) + fails)
    first, second = engines[name], engines[other(name)]
    answer = computed(first, ids)
    forget(first)
    turn = ids + answer + prompt(30, seed=20)
    loaded = first.call("kept")
    first.call("fail_kept", fails)
    [(expected, cached)] = first.call("generate", [turn], 12)
    first.call("idle_step")
    assert cached == (0 if fails else 6 * BLOCK)
    assert first.call("kept") == loaded + (not fails)
    assert second.call("generate", [turn], 12) == [(expected, 7 * BLOCK)]
    assert first.call("group_digests", turn) == second.call("group_digests", turn)
    forget(first)
    first.call("drop_kept")
    assert computed(first, turn) == expected
