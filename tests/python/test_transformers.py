"""Prefix sharing under generate(): what is found, what must not be shared, what must go on without kvmd."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MambaConfig, Qwen2Config

from kvclient import KeyChain
from kvclient.daemon import PrivateDaemon
from kvclient.errors import InvalidArgumentError, UnsupportedError
from kvclient.transformers import Marketplace, rope_of, spec_of
from kvclient.transformers.spec import attention_layers
from support.mesh import MeshProcess
from support.models import make_model, prompt
from support.waiting import eventually
from support.worker import Worker

BLOCK = 16


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama")


@pytest.fixture
def market(kvmd: PrivateDaemon, model: Any) -> Iterator[Callable[..., Marketplace]]:
    """Makes marketplaces, each a peer of its own; of the same model unless told otherwise."""
    made: list[Marketplace] = []

    def make(**options: Any) -> Marketplace:
        defaults = {"model_id": "test", "revision": "r1", "socket_path": kvmd.socket}
        made.append(Marketplace(options.pop("model", model), **{**defaults, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def plain(model: Any, ids: torch.Tensor, new_tokens: int = 8, **options: Any) -> torch.Tensor:
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, **options}
    return model.generate(ids, max_new_tokens=new_tokens, **options)


def shared(market: Marketplace, ids: torch.Tensor, new_tokens: int = 8, **options: Any) -> torch.Tensor:
    output = market.generate(ids, max_new_tokens=new_tokens, do_sample=False, **options)
    if market.client.state.name == "CONNECTED":
        market.region.flush(5.0)
    return output


@pytest.mark.parametrize(
    ("tokens", "reused"),
    [(200, 96), (97, 96), (96, 80), (95, 80), (81, 80), (80, 64), (65, 64), (64, 0)],
)
def test_as_many_full_blocks_as_leave_a_token_to_compute(
    market: Callable[..., Marketplace], model: Any, tokens: int, reused: int
) -> None:
    """Six blocks are published; prompts that are longer, exactly as long, shorter, and end inside a block."""
    owner, importer = market(publish_generated=False), market()
    ids = prompt(200, seed=3)
    shared(owner, ids[:, :96])
    assert torch.equal(shared(importer, ids[:, :tokens]), plain(model, ids[:, :tokens]))
    assert importer.stats.reused_tokens == reused
    assert importer.stats.blocks_imported == reused // BLOCK


def test_generated_tokens_are_shared_too(market: Callable[..., Marketplace], model: Any) -> None:
    """A chat's next turn starts behind the answer, whichever process it goes to."""
    owner, importer = market(), market()
    answer = shared(owner, prompt(100), new_tokens=40)
    turn = torch.cat([answer, prompt(30, seed=9)], dim=1)
    assert torch.equal(shared(importer, turn), plain(model, turn))
    assert importer.stats.reused_tokens == 139 // BLOCK * BLOCK, "the last token's states were never computed"


def test_what_was_imported_serves_others_and_itself(market: Callable[..., Marketplace], model: Any) -> None:
    owner, importer, third = market(), market(), market()
    ids = prompt(100)
    shared(owner, ids)
    shared(importer, ids)
    owner.close()
    assert torch.equal(shared(importer, ids), plain(model, ids))
    assert (importer.stats.blocks_imported, importer.stats.blocks_own) == (6, 6)
    assert torch.equal(shared(third, ids), plain(model, ids))
    assert third.stats.blocks_imported == 6


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"cache_salt": "a"}, {"cache_salt": "b"}),
        ({"cache_salt": "a"}, {}),
        ({}, {"cache_salt": "b"}),
        ({"lora": "a"}, {"lora": "b"}),
        ({"lora": "a"}, {}),
        ({"lora": "a"}, {"cache_salt": "a"}),
    ],
)
def test_other_salts_and_adapters_share_nothing(
    market: Callable[..., Marketplace], ours: dict[str, str], theirs: dict[str, str]
) -> None:
    owner, importer = market(), market()
    ids = prompt(100)
    shared(owner, ids, **ours)
    shared(importer, ids, **theirs)
    assert importer.stats.reused_tokens == 0
    shared(importer, prompt(100), **ours)
    assert importer.stats.reused_tokens == 96, "with the owner's it does share"


def changed(model: Any, **settings: Any) -> Any:
    other = copy.deepcopy(model)
    for name, value in settings.items():
        setattr(other.config, name, value)
    return other


def with_other_weights(model: Any) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-6
    return other


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda model: {"revision": "r2"}, ["revision"]),
        (lambda model: {"block_tokens": 32}, ["block_tokens"]),
        (lambda model: {"weights_digest": "other"}, ["weights_digest"]),
        (lambda model: {"model": make_model("llama", "bfloat16")}, ["weights_digest", "kv_dtype"]),
        (lambda model: {"model": make_model("llama", attention="eager")}, ["weights_digest"]),
        (lambda model: {"model": changed(model, rms_norm_eps=1e-5)}, ["weights_digest"]),
        (
            lambda model: {"model": changed(model, rope_parameters={"rope_type": "default", "rope_theta": 5e5})},
            ["rope"],
        ),
    ],
)
def test_another_model_shares_nothing_and_the_field_is_named(
    market: Callable[..., Marketplace], model: Any, change: Callable[[Any], dict[str, Any]], fields: list[str]
) -> None:
    owner, other = market(), market(**change(model))
    shared(owner, prompt(100))
    assert other.fetch(prompt(100)).tokens == 0
    assert [[each.field for each in miss.differences] for miss in other.near_misses()] == [fields]


def test_without_a_revision_the_weights_are_the_name(market: Callable[..., Marketplace], model: Any) -> None:
    same, again = market(revision=""), market(revision="", model=copy.deepcopy(model))
    other = market(revision="", model=with_other_weights(model))
    shared(same, prompt(100))
    assert again.fetch(prompt(100)).tokens == 96
    assert other.fetch(prompt(100)).tokens == 0
    assert {each.field for miss in other.near_misses() for each in miss.differences} == {"weights_digest"}


def test_the_same_position_settings_are_the_same_text_in_every_version() -> None:
    scaling = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
    before = SimpleNamespace(rope_theta=500000.0, rope_scaling=scaling)
    since = SimpleNamespace(rope_parameters={**scaling, "rope_theta": 500000})
    assert rope_of(before) == rope_of(since)
    assert rope_of(SimpleNamespace(rope_theta=1e4, rope_scaling=None)) == "theta=10000.0;type=default"
    assert rope_of(since) != rope_of(SimpleNamespace(rope_parameters={**scaling, "rope_theta": 1e4}))
    assert rope_of(SimpleNamespace(max_position_embeddings=1024)) == "learned=1024"


def test_the_spec_says_what_the_configuration_says() -> None:
    spec = spec_of(make_model("mistral-sliding"), revision="abc", model_id="m", block_tokens=8)
    assert (spec.num_layers, spec.num_kv_heads, spec.head_size, spec.block_tokens) == (3, 2, 16, 8)
    assert (spec.sliding_window, spec.kv_dtype, spec.revision, spec.layout) == (48, "float32", "abc", "HND")
    assert spec_of(make_model("qwen3"), revision="abc").head_size == 32
    assert spec_of(make_model("gpt2"), revision="abc").num_kv_heads == 4


def test_two_mounts_of_one_model_have_one_spec() -> None:
    def at(path: str, **what: str) -> Any:
        model = make_model("llama")
        model.config.name_or_path = path
        return spec_of(model, **what)

    assert at("/a") == at("/b")
    assert at("/a", weights_digest="w") == at("/b", weights_digest="w")
    assert at("/a", revision="r") == at("/b", revision="r")


def test_a_model_that_keeps_something_else_is_refused() -> None:
    assert len(attention_layers(LlamaConfig(num_hidden_layers=2))) == 2
    with pytest.raises(UnsupportedError, match="mamba"):
        attention_layers(MambaConfig(num_hidden_layers=2))
    hybrid = Qwen2Config(num_hidden_layers=2)
    hybrid.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedError, match="linear_attention"):
        attention_layers(hybrid)


@pytest.mark.parametrize(
    ("reason", "ids", "options"),
    [
        ("batch", torch.cat([prompt(100), prompt(100, seed=1)]), {}),
        ("attention_mask", prompt(100), {"attention_mask": torch.tensor([[0] * 4 + [1] * 96])}),
        ("beams", prompt(100), {"num_beams": 2}),
        ("use_cache", prompt(100), {"use_cache": False}),
        ("past_key_values", prompt(100), {"past_key_values": "a DynamicCache"}),
    ],
)
def test_requests_that_cannot_start_from_a_prefix_go_to_the_model(
    market: Callable[..., Marketplace], model: Any, reason: str, ids: torch.Tensor, options: dict[str, Any]
) -> None:
    owner = market()
    shared(owner, prompt(100))

    def fresh() -> dict[str, Any]:
        return (
            {**options, "past_key_values": DynamicCache(config=model.config)}
            if "past_key_values" in options
            else options
        )

    assert torch.equal(shared(owner, ids, **fresh()), plain(model, ids, **fresh()))
    assert owner.stats.bypassed == {reason: 1}
    assert owner.stats.reused_tokens == 0


def test_a_pool_much_smaller_than_the_prompts_stays_right(market: Callable[..., Marketplace], model: Any) -> None:
    """Blocks are reused all the time, under the eyes of the other; no token may change."""
    sides = [market(pool_blocks=9, min_prefix_tokens=16), market(pool_blocks=7, min_prefix_tokens=16)]
    prompts = [torch.cat([prompt(80, seed=i % 3), prompt(40, seed=i)], dim=1) for i in range(12)]
    for number, ids in enumerate(prompts + prompts):
        assert torch.equal(shared(sides[number % 2], ids, 4), plain(model, ids, 4))
    assert sum(side.stats.reused_tokens for side in sides) > 0
    assert sum(side.stats.errors for side in sides) == 0


def test_beyond_the_window_only_a_cache_that_keeps_all_can_be_published(market: Callable[..., Marketplace]) -> None:
    model = make_model("mistral-sliding")
    owner, importer = market(model=model), market(model=model)
    ids = prompt(100)
    lossy, complete = DynamicCache(config=model.config), owner.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=lossy)
        model(ids, past_key_values=complete)
    assert owner.publish(ids, lossy) == 0
    assert importer.fetch(ids).tokens == 0
    assert owner.publish(ids, complete) == 6
    owner.region.flush(5.0)
    assert importer.fetch(ids).tokens == 96


def test_a_cache_of_another_shape_is_refused(market: Callable[..., Marketplace]) -> None:
    other = make_model("qwen3")
    cache = DynamicCache(config=other.config)
    with torch.no_grad():
        other(prompt(32), past_key_values=cache)
    with pytest.raises(InvalidArgumentError, match="layer 0 of the cache"):
        market().publish(prompt(32), cache)


def test_a_block_rewritten_between_find_and_import_is_computed(
    market: Callable[..., Marketplace], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, importer = market(), market()
    ids = prompt(100)
    shared(owner, ids)
    find = type(importer.client).find

    class Rewriting:
        """The importer's client, with an owner that reuses its third block right after each find."""

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def find(self, keys: Any, **options: Any) -> Any:
            match = find(client, keys, **options)
            owner.region.retract([match[2].block])
            return match

    client = importer.client
    monkeypatch.setattr(importer._store, "client", Rewriting())
    assert torch.equal(shared(importer, ids), plain(model, ids))
    assert (importer.stats.blocks_imported, importer.stats.blocks_failed) == (2, 4)
    assert importer.stats.reused_tokens == 32
    assert client.stats().blocks_imported == 2


def test_without_kvmd_everything_is_as_without_the_marketplace(model: Any, tmp_path: Any) -> None:
    with Marketplace(model, socket_path=str(tmp_path / "none.sock"), revision="r1", connect_timeout_s=0.05) as market:
        for seed in (0, 0, 1):
            assert torch.equal(shared(market, prompt(100, seed)), plain(model, prompt(100, seed)))
        assert market.stats.reused_tokens == 0
        assert market.stats.errors == 0


def test_kvmd_may_come_late_die_and_come_back(model: Any) -> None:
    daemon = PrivateDaemon()
    options: dict[str, Any] = {
        "socket_path": daemon.socket,
        "model_id": "t",
        "revision": "r1",
        "connect_timeout_s": 0.05,
    }
    try:
        with Marketplace(model, **options) as owner, Marketplace(model, **options) as importer:
            first, second = prompt(100, seed=1), prompt(100, seed=2)

            def reused_soon(ids: torch.Tensor) -> int:
                """Both reconnect by themselves; what was published meanwhile is announced then."""
                for _ in range(500):
                    tokens = importer.fetch(ids).tokens
                    if tokens:
                        return tokens
                    time.sleep(0.02)
                return 0

            assert torch.equal(shared(owner, first), plain(model, first))
            daemon.start()
            assert reused_soon(first) == 96
            daemon.kill()
            assert torch.equal(shared(owner, second), plain(model, second))
            assert torch.equal(shared(importer, first), plain(model, first))
            daemon.start()
            assert reused_soon(second) == 96
            assert torch.equal(shared(importer, second), plain(model, second))
            assert importer.stats.errors == 0
    finally:
        daemon.stop()


def test_processes_that_start_early_and_late_share_both_ways(
    kvmd: PrivateDaemon, start_worker: Callable[..., Worker], model: Any
) -> None:
    first, second = prompt(120, seed=4), prompt(120, seed=5)
    expected = [plain(model, ids)[0, 120:].tolist() for ids in (first, second)]
    early = start_worker("support.model_worker", kvmd.socket, "llama", "early")
    assert early.call("generate", first[0].tolist(), 8) == expected[0]
    late = start_worker("support.model_worker", kvmd.socket, "llama", "late")
    assert late.call("generate", first[0].tolist(), 8) == expected[0]
    assert late.call("stats")["blocks_imported"] == 7
    assert late.call("generate", second[0].tolist(), 8) == expected[1]
    assert early.call("generate", second[0].tolist(), 8) == expected[1]
    assert early.call("stats")["blocks_imported"] == 7


def test_a_marketplace_that_is_killed_leaves_no_memory_behind(
    market: Callable[..., Marketplace], kvmd: PrivateDaemon, start_worker: Callable[..., Worker]
) -> None:
    owner = start_worker("support.model_worker", kvmd.socket, "llama", "owner")
    peer = market()
    ids = prompt(64)
    chain = KeyChain(peer.client.declare_model(peer.spec))
    keys = chain.extend(ids[0].tolist())
    owner.call("generate", ids[0].tolist(), 4)
    eventually(lambda: len(peer.client.find(keys)) > 0)
    owner.kill()
    eventually(lambda: len(peer.client.find(keys)) == 0)
    assert peer.client.reclaim_orphans().regions == 0


# ---- other nodes ----


def test_a_prompt_that_another_node_has_computed_is_fetched(
    model: Any, start_mesh: Callable[..., MeshProcess], tmp_path: Path
) -> None:
    ids = prompt(100, seed=31)
    with PrivateDaemon() as kvmd_a, PrivateDaemon() as kvmd_b:
        mesh_a = start_mesh(kvmd_a, "a")
        mesh_b = start_mesh(kvmd_b, "b", (mesh_a.as_peer,))
        none = str(tmp_path / "none.sock")
        with (
            Marketplace(model, socket_path=kvmd_a.socket, name="a", pool_blocks=16, mesh_socket=none) as there,
            Marketplace(
                model, socket_path=kvmd_b.socket, name="b", pool_blocks=16, mesh_socket=mesh_b.socket, mesh_wait_s=10.0
            ) as here,
            Marketplace(model, socket_path=kvmd_b.socket, name="c", pool_blocks=16, mesh_socket=none) as alone,
        ):
            expected = there.generate(ids, max_new_tokens=8, do_sample=False)
            assert alone.fetch(ids).tokens == 0
            # Node b learns after a moment what node a has
            eventually(lambda: here.fetch(ids).tokens == 96)
            assert here.generate(ids, max_new_tokens=8, do_sample=False).tolist() == expected.tolist()
