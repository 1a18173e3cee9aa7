"""KV events of real engines: what peers hold of a prefix is in the stream of the engine that can import it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon
from support.forked_worker import ForkedWorker
from support.vllm_engines import prompt
from support.vllm_worker import BLOCK
from support.worker import Worker

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)

ENGINE = "support.vllm_events_worker"
IDS = prompt(203, seed=6)
BLOCKS = 203 // BLOCK


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Worker, Worker]]:
    """The second one publishes nothing, so that all that its events tell of is the first one's."""
    with PrivateDaemon() as daemon:
        first = ForkedWorker(ENGINE, daemon.socket, 100, {})
        try:
            second = ForkedWorker(ENGINE, daemon.socket, 100, {"publish": False})
            try:
                yield first, second
            finally:
                second.stop()
        finally:
            first.stop()


def events_until(engine: Worker, wanted: str) -> list[dict[str, Any]]:
    """Events of the engine, which makes steps until there is one of a block that peers hold."""
    taken: list[dict[str, Any]] = []
    for _ in range(200):
        taken += engine.call("take_events")
        if any(each["type"] == wanted and each["medium"] == "CPU" for each in taken):
            return taken
        engine.call("generate", [[5, 6, 7]], 1)
    raise AssertionError(f"no {wanted} of the medium CPU: {taken}")


def by_block(events: list[dict[str, Any]], medium: str) -> dict[Any, dict[str, Any]]:
    """Of each block stored: its parent, its tokens and what else is told of it."""
    told = {}
    for event in events:
        if event["type"] != "BlockStored" or event["medium"] != medium:
            continue
        parents = [event["parent_block_hash"], *event["block_hashes"]]
        for index, block in enumerate(event["block_hashes"]):
            told[block] = {
                "parent": parents[index],
                "tokens": event["token_ids"][index * BLOCK : (index + 1) * BLOCK],
                "extra keys": (event["extra_keys"] or [None] * (index + 1))[index],
                **{name: event[name] for name in ("block_size", "lora_id", "lora_name", "group_idx")},
                **{name: event[name] for name in ("kv_cache_spec_kind", "kv_cache_spec_sliding_window")},
            }
    return told


def test_what_a_peer_holds_is_told_as_vllm_tells_of_its_own_blocks(engines: tuple[Worker, Worker]) -> None:
    first, second = engines
    first.call("generate", [IDS], 4)
    first.call("idle_step")
    second.call("generate", [IDS], 4)
    events = events_until(second, "BlockStored")
    held, own = by_block(events, "CPU"), by_block(events, "GPU")
    assert len(held) == BLOCKS
    assert [token for each in held.values() for token in each["tokens"]] == IDS[: BLOCKS * BLOCK]
    assert held == {block: own[block] for block in held}


def test_what_a_peer_withdraws_is_told(engines: tuple[Worker, Worker]) -> None:
    first, second = engines
    first.call("reset_prefix_cache")
    first.call("generate", [[5, 6, 7]], 1)
    removed = [each for each in events_until(second, "BlockRemoved") if each["type"] == "BlockRemoved"]
    assert sum(len(each["block_hashes"]) for each in removed) == BLOCKS
    assert {each["medium"] for each in removed} == {"CPU"}
