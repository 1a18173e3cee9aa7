"""A real vLLM engine whose connector is a MultiConnector: ours beside one that insists on its own metadata."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon
from support.vllm_worker import BLOCK
from support.worker import Worker

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/python_env.sh --vllm)")


def prompt(length: int, seed: int = 0) -> list[int]:
    return [(7 * i * i + 13 * i + 101 * seed) % 500 + 5 for i in range(length)]


def several(socket: str, files: Path, ours_first: bool, policy: str) -> dict[str, Any]:
    ours = {
        "kv_connector": "KvMarketConnector",
        "kv_connector_module_path": "kvclient.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"socket": socket, "min_prefix_tokens": BLOCK},
    }
    others = [
        {
            "kv_connector": "InsistingConnector",
            "kv_connector_module_path": "support.insisting_connector",
            "kv_role": "kv_both",
        },
        {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"shared_storage_path": str(files)},
        },
    ]
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": {"connectors": [ours, *others] if ours_first else [*others, ours]},
    }


@pytest.mark.parametrize("ours_first", [True, False])
def test_ours_shares_beside_other_connectors_in_either_order(
    kvmd: PrivateDaemon, start_worker: Callable[..., Worker], tmp_path: Path, ours_first: bool
) -> None:
    engine = start_worker(
        "support.vllm_worker",
        None,
        100,
        {},
        {},
        {"kv_transfer_config": several(kvmd.socket, tmp_path, ours_first, "recompute")},
    )
    ids = prompt(6 * BLOCK + 3)
    [(first, _)] = engine.call("generate", [ids], 8)
    engine.call("idle_step")
    stats = engine.call("stats")
    assert not stats["off"]
    assert stats["published"] >= 6
    engine.call("reset_prefix_cache")
    [(again, cached)] = engine.call("generate", [ids], 8)
    assert again == first
    assert cached >= 4 * BLOCK


def test_an_engine_that_ends_requests_whose_load_fails_does_not_share(
    kvmd: PrivateDaemon, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    engine = start_worker(
        "support.vllm_worker",
        None,
        100,
        {},
        {},
        {"kv_transfer_config": several(kvmd.socket, tmp_path, True, "fail")},
    )
    assert engine.call("stats")["off"]
