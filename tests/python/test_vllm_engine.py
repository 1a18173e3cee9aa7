"""Real vLLM engines on the CPU, with and without the marketplace: same tokens, same KV bytes, fewer computed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from kvclient.daemon import PrivateDaemon
from support.forked_worker import ForkedWorker
from support.vllm_engines import ENGINE, Engines, prompt
from support.vllm_worker import BLOCK, WAITING_LOADS
from support.worker import Worker

if find_spec("vllm") is None:  # not imported: only the engines' processes need it
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)


NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}


@pytest.fixture(scope="module")
def engines(daemon: PrivateDaemon) -> Iterator[dict[str, Worker]]:
    """``plain``: without the connector; ``first``, ``second``: with it, the second one with few blocks.

    ``speculating``: proposes tokens from the prompt.
    """
    arguments = {
        "plain": (None, 100),
        "first": (daemon.socket, 100, {"prefill_wait_s": 60.0}),
        "second": (daemon.socket, 30, {**WAITING_LOADS, "prefill_wait_s": 60.0}),
        "speculating": (daemon.socket, 100, {}, {}, {"speculative_config": NGRAM, "disable_log_stats": False}),
    }
    workers = Engines(arguments)
    yield workers
    with contextlib.ExitStack() as ending:  # all of them, whatever happens to one
        for worker in workers.values():
            ending.callback(worker.stop)


def same_bytes(engines: dict[str, Worker], ids: list[int], blocks: int) -> None:
    """The first blocks of a prompt hold the same bytes in all engines, whether computed or imported."""
    engines["plain"].call("generate", [ids], 1)
    computed = engines["plain"].call("kv_digests", ids)
    assert len(computed) >= blocks
    for name in ("first", "second"):
        assert engines[name].call("kv_digests", ids)[:blocks] == computed[:blocks], name


def test_answers_depend_on_the_whole_prompt(engines: dict[str, Worker]) -> None:
    """Else the same answer would say nothing of what was imported."""
    ids = prompt(203, seed=2)
    for changed in (0, 1, 40, 101, 201):
        other = [*ids[:changed], ids[changed] + 1, *ids[changed + 1 :]]
        [(answer, _), (theirs, _)] = engines["plain"].call("generate", [ids, other], 12)
        assert answer != theirs, changed


def test_an_engine_starts_from_what_another_one_computed(engines: dict[str, Worker]) -> None:
    ids = prompt(203)
    [(expected, cached)] = engines["plain"].call("generate", [ids], 24)
    assert cached == 0
    assert engines["first"].call("generate", [ids], 24) == [(expected, 0)]
    before = engines["second"].call("stats")["imported"]
    assert engines["second"].call("generate", [ids], 24) == [(expected, 6 * BLOCK)]
    assert engines["second"].call("stats")["imported"] - before == 6
    same_bytes(engines, ids, 6)


def test_a_shorter_prefix_and_one_that_ends_inside_a_block(engines: dict[str, Worker]) -> None:
    ids = prompt(150, seed=1)
    engines["first"].call("generate", [ids], 4)
    longer = ids[:101] + prompt(60, seed=9)
    [(expected, _)] = engines["plain"].call("generate", [longer], 16)
    assert engines["second"].call("generate", [longer], 16) == [(expected, 3 * BLOCK)]
    same_bytes(engines, longer, 3)


def test_both_directions_and_with_background_loads(engines: dict[str, Worker]) -> None:
    prompts = [prompt(120, seed=20 + i) for i in range(3)]
    expected = [tokens for tokens, _ in engines["plain"].call("generate", prompts, 12)]
    engines["second"].call("generate", prompts, 12)
    got = engines["first"].call("generate", prompts, 12)
    assert [tokens for tokens, _ in got] == expected
    assert [cached for _, cached in got] == [3 * BLOCK] * 3
    for ids in prompts:
        same_bytes(engines, ids, 3)


def test_equal_requests_that_arrive_at_once_import_their_prefix_once(engines: dict[str, Worker]) -> None:
    ids = prompt(203, seed=31)
    [(expected, _)] = engines["plain"].call("generate", [ids], 12)
    engines["second"].call("generate", [ids], 1)
    engines["second"].call("idle_step")
    before = engines["first"].call("stats")["imported"]
    got = engines["first"].call("generate", [ids] * 4, 12)
    assert [tokens for tokens, _ in got] == [expected] * 4
    assert [cached for _, cached in got] == [6 * BLOCK] * 4
    assert engines["first"].call("stats")["imported"] - before == 6
    same_bytes(engines, ids, 6)


def test_salts_do_not_share(engines: dict[str, Worker]) -> None:
    ids = prompt(100, seed=3)
    engines["first"].call("generate", [ids], 4, salt="a")
    assert engines["second"].call("generate", [ids], 4, salt="b")[0][1] == 0
    assert engines["second"].call("generate", [ids], 4)[0][1] == 0
    assert engines["first"].call("generate", [ids], 4, salt="b")[0][1] == 3 * BLOCK


def test_what_was_generated_is_shared_too(engines: dict[str, Worker]) -> None:
    ids = prompt(64, seed=4)
    [(answer, _)] = engines["first"].call("generate", [ids], 40)
    engines["first"].call("idle_step")
    turn = ids + answer + prompt(20, seed=5)
    assert engines["second"].call("generate", [turn], 4)[0][1] == 3 * BLOCK


def test_a_decode_engine_starts_from_what_a_prefill_engine_computed(engines: dict[str, Worker]) -> None:
    """As vLLM's proxies call, which hand on what the prefill engine answers before it has published anything."""
    for_prefill = {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    ids = prompt(203, seed=16)
    for prefill, decode in (("first", "second"), ("second", "first")):
        [(expected, _)] = engines["plain"].call("generate", [ids], 24)
        first, answer = engines[prefill].call("prefill", ids, for_prefill)
        assert first == expected[0]
        assert answer == {"kvmarket_prefilled": len(ids) // BLOCK * BLOCK}
        decoding = engines[decode].start("generate", [ids], 24, params=answer)
        engines[prefill].call("idle_step")
        assert decoding() == [(expected, (len(ids) - 1) // BLOCK * BLOCK)]
        engines[decode].call("idle_step")
        # The conversation goes on the other way round
        ids = ids + expected + prompt(30, seed=17)


@pytest.mark.skipif(find_spec("numba") is None, reason="vLLM's ngram speculation needs numba")
def test_an_engine_that_speculates_from_the_prompt_shares_with_others_and_proposes_as_well(
    engines: dict[str, Worker],
) -> None:
    speculating = engines["speculating"]
    ids = prompt(203, seed=18)
    turn = ids + prompt(203, seed=18)[:60]
    [(expected, _)] = engines["plain"].call("generate", [turn], 48)
    assert speculating.call("generate", [turn], 48, params={"kvmarket": False}) == [(expected, 0)]
    alone = speculating.call("speculation")
    assert alone[0] > 0
    speculating.call("reset_prefix_cache")
    # The first step after a reset looks nothing up
    speculating.call("generate", [prompt(20, seed=19)], 1)
    engines["first"].call("generate", [turn], 1)
    engines["first"].call("idle_step")
    before = speculating.call("speculation")
    assert speculating.call("generate", [turn], 48) == [(expected, 8 * BLOCK)]
    speculating.call("idle_step")
    after = speculating.call("speculation")
    assert tuple(now - then for now, then in zip(after, before, strict=True)) == alone
    # Rejected tokens have left no trace in what is published
    again = turn + expected + prompt(30, seed=20)
    [(expected, _)] = engines["plain"].call("generate", [again], 8)
    # The block after them is published by the engine that computes it
    for name, blocks in (("second", 9), ("first", 10)):
        assert engines[name].call("generate", [again], 8) == [(expected, blocks * BLOCK)]
    # The block of generated tokens rounds otherwise: the engine computed several of them at once
    same_bytes(engines, again, 8)


def test_answers_stay_the_same_while_blocks_are_reused(engines: dict[str, Worker]) -> None:
    """More prefixes than the second engine has blocks, so that it evicts, withdraws and imports all the time."""
    prompts = [prompt(90, seed=40 + i % 14)[:70] + prompt(30, seed=60 + i) for i in range(40)]
    expected = [tokens for tokens, _ in engines["plain"].call("generate", prompts, 8)]
    calls = [engines[name].start("generate", prompts, 8) for name in ("first", "second")]
    for call in calls:
        assert [tokens for tokens, _ in call()] == expected
    assert engines["second"].call("stats")["imported"] > 0


def test_vllm_makes_a_new_hash_object_for_each_caching(engines: dict[str, Worker]) -> None:
    assert engines["first"].call("hash_objects_are_new")


def test_memory_that_sleep_unmaps_is_withdrawn_and_registered_again(engines: dict[str, Worker]) -> None:
    first, second = engines["first"], engines["second"]
    ids, fresh = prompt(100, seed=13), prompt(100, seed=14)
    first.call("generate", [ids], 4)
    first.call("idle_step")
    first.call("hooks_of_sleep", "unregister_kv_caches")
    assert second.call("generate", [ids[:70]], 4)[0][1] == 0
    first.call("hooks_of_sleep", "restore_kv_caches")
    first.call("reset_prefix_cache")  # vLLM's own sleep() empties it as well
    first.call("generate", [fresh], 4)
    first.call("idle_step")
    assert second.call("generate", [fresh], 4)[0][1] == 3 * BLOCK
    same_bytes(engines, fresh, 3)


def test_memory_that_kvmd_registers_late_after_sleep_shares_what_was_computed_meanwhile(
    engines: dict[str, Worker], daemon: PrivateDaemon
) -> None:
    first, second = engines["first"], engines["second"]
    ids = prompt(100, seed=15)
    first.call("hooks_of_sleep", "unregister_kv_caches")
    assert daemon.pid is not None
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        first.call("hooks_of_sleep", "restore_kv_caches")
        first.call("reset_prefix_cache")
        [(expected, _)] = first.call("generate", [ids], 4)
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    first.call("wait_until_registered")
    assert first.call("generate", [ids], 4) == [(expected, 3 * BLOCK)]
    first.call("idle_step")
    assert second.call("generate", [ids], 4) == [(expected, 3 * BLOCK)]
    same_bytes(engines, ids, 3)


def test_counters_reach_prometheus(engines: dict[str, Worker]) -> None:
    lines = engines["first"].call("prometheus")
    assert 'vllm:kvmarket_imported_blocks_total{engine="0"} 3.0' in lines
    assert 'vllm:kvmarket_find_seconds_count{engine="0"} 2.0' in lines


def test_a_reset_withdraws_what_was_published(engines: dict[str, Worker]) -> None:
    ids = prompt(100, seed=6)
    engines["first"].call("generate", [ids], 4)
    engines["first"].call("reset_prefix_cache")
    engines["first"].call("generate", [prompt(20, seed=7)], 1)
    assert engines["second"].call("generate", [ids], 4)[0][1] == 0


def test_without_kvmd_the_engine_goes_on_and_shares_again_when_it_is_back(
    engines: dict[str, Worker], daemon: PrivateDaemon
) -> None:
    daemon.kill()
    ids = prompt(120, seed=8)
    [(expected, _)] = engines["plain"].call("generate", [ids], 8)
    assert engines["first"].call("generate", [ids], 8)[0][0] == expected
    daemon.start()
    fresh = prompt(120, seed=11)
    for attempt in range(40):
        engines["first"].call("generate", [prompt(120, seed=100 + attempt)], 1)
        engines["first"].call("generate", [fresh], 1)
        engines["first"].call("idle_step")
        if engines["second"].call("generate", [prompt(120, seed=100 + attempt)], 1)[0][1] > 0:
            return
    pytest.fail("never shared again")


def test_the_connector_insists_on_recomputing_failed_loads(daemon: PrivateDaemon) -> None:
    from types import SimpleNamespace

    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from kvclient.vllm import KvMarketConnector

    transfer = SimpleNamespace(kv_load_failure_policy="fail", kv_connector_extra_config={}, engine_id="e")
    with pytest.raises(ValueError, match="kv_load_failure_policy=recompute"):
        KvMarketConnector(SimpleNamespace(kv_transfer_config=transfer), KVConnectorRole.SCHEDULER, None)


@pytest.mark.parametrize("role", ["SCHEDULER", "WORKER"])
def test_loads_that_a_step_waits_for_are_refused_on_the_v2_runner(role: str) -> None:
    from types import SimpleNamespace

    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from kvclient.vllm import KvMarketConnector

    transfer = SimpleNamespace(
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={"socket": "/s", "load": "sync"},
        engine_id="e",
        kv_connector="",
        is_kv_producer=True,
    )
    config = SimpleNamespace(kv_transfer_config=transfer, use_v2_model_runner=True)
    with pytest.raises(ValueError, match="load=sync gives wrong tokens with vLLM's V2 model runner"):
        KvMarketConnector(config, KVConnectorRole[role], None)
    for runner, load in ((False, "sync"), (True, "async")):
        config.use_v2_model_runner = runner
        transfer.kv_connector_extra_config["load"] = load
        KvMarketConnector(config, KVConnectorRole[role], None)


def test_an_engine_without_prefix_caching_is_refused() -> None:
    from types import SimpleNamespace

    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from kvclient.vllm import KvMarketConnector

    transfer = SimpleNamespace(kv_load_failure_policy="recompute", kv_connector_extra_config={}, engine_id="e")
    config = SimpleNamespace(kv_transfer_config=transfer, parallel_config=SimpleNamespace())
    kind = type("FullAttentionSpec", (), {})
    groups = SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=kind(), layer_names=["0"])])
    for caching in (True, False):
        connector = KvMarketConnector(config, KVConnectorRole.SCHEDULER, groups)
        connector.bind_gpu_block_pool(SimpleNamespace(enable_caching=caching))
        reason = "" if caching else "nothing tells a block's content: start with --enable-prefix-caching"
        assert connector._off.endswith(reason)
        assert bool(connector._off) is not caching


def test_weights_that_are_changed_in_place_make_another_model(engines: dict[str, Worker]) -> None:
    first, second = engines["first"], engines["second"]
    ids, fresh = prompt(100, seed=30), prompt(100, seed=31)
    first.call("generate", [ids], 4)
    first.call("idle_step")
    before = first.call("model")
    second.call("change_weights", 2.0)
    # Its cache may hold blocks of the old weights, and peers have no others.
    assert second.call("generate", [ids], 4)[0][1] == 0
    second.call("reset_prefix_cache")
    assert second.call("generate", [prompt(100, seed=32)], 1)[0][1] == 0
    assert second.call("generate", [ids], 4)[0][1] == 0
    assert first.call("model") == before != second.call("model")
    first.call("change_weights", 2.0)
    first.call("reset_prefix_cache")
    first.call("generate", [fresh], 4)
    first.call("idle_step")
    assert first.call("model") == second.call("model")
    assert second.call("generate", [fresh], 4)[0][1] == 3 * BLOCK
    for worker in (first, second):
        worker.call("change_weights", 1.0)
        worker.call("reset_prefix_cache")
    first.call("generate", [ids], 4)
    first.call("idle_step")
    assert first.call("model") == before
    # The first step after a reset withdraws, and looks nothing up
    second.call("generate", [prompt(20, seed=33)], 1)
    assert second.call("generate", [ids], 4)[0][1] == 3 * BLOCK


def test_the_longest_prompt_counts_where_it_chooses_the_position_embedding(daemon: PrivateDaemon) -> None:
    """LongRoPE: two engines of one model, that differ in max_model_len, have other bytes for the same tokens."""
    factors = [1.0 + i / 4 for i in range(16)]
    model = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_hidden_layers": 1,
        "original_max_position_embeddings": 256,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": factors},
        "pad_token_id": 0,
    }
    specs = []
    for length in (256, 512):
        worker = ForkedWorker(ENGINE, daemon.socket, 30, {}, model, {"max_model_len": length})
        assert not worker.call("stats")["off"]
        specs.append(worker.call("model"))
        worker.stop()
    assert "max_model_len=256" in specs[0]
    assert "max_model_len=512" in specs[1]


def test_another_models_blocks_are_not_found(engines: dict[str, Worker], daemon: PrivateDaemon) -> None:
    ids = prompt(100, seed=12)
    engines["first"].call("generate", [ids], 4)
    engines["first"].call("idle_step")
    other = ForkedWorker(ENGINE, daemon.socket, 30, {}, {"rms_norm_eps": 1e-6})
    try:
        assert other.call("generate", [ids], 4)[0][1] == 0
        assert not other.call("stats")["off"]
    finally:
        other.stop()
