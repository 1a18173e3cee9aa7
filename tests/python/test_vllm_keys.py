"""Where the keys of a request come from: vLLM's own block hashes, or one chain over its tokens for all shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import kvclient
from kvclient import BlockKeys, ShardKeys
from kvclient.errors import InvalidArgumentError, UnsupportedError
from kvclient.vllm import keys as keys_module
from kvclient.vllm.engine_hashes import EngineHashes
from kvclient.vllm.keys import KeySource, RequestKeys
from support.paged_step import Request
from support.specs import small_spec

SPEC = small_spec()
WHOLE = [kvclient.Shard()]


def shards(count: int) -> list[kvclient.Shard]:
    return [kvclient.Shard(tp_rank=rank, tp_size=count) for rank in range(count)]


def of_first_block(tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(repr(list(tokens)).encode()).digest()


def hashes(follow_sessions: bool = True) -> EngineHashes:
    return EngineHashes("keys=test", follow_sessions, of_first_block)


def hashed(tokens: list[int], **fields: Any) -> Any:
    """A request with a hash for each full block, as vLLM makes them: of the whole prefix."""
    made: Any = Request("r", tokens, 1)
    made.block_hashes = [of_first_block(tokens[: 4 * (index + 1)]) for index in range(len(tokens) // 4)]
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def engine_keys(tokens: list[int], parts: Sequence[kvclient.Shard] = WHOLE, adapter: str = "", **fields: Any) -> Any:
    return [
        list(each) for each in RequestKeys(KeySource(SPEC, parts, hashes()), hashed(tokens, **fields), adapter).upto(4)
    ]


# ---- from the engine's hashes ----


def test_keys_are_derived_from_the_first_half_of_the_engines_hashes() -> None:
    tokens = list(range(16))
    names = BlockKeys()
    names.extend_hashes(hashed(tokens).block_hashes, 4)
    assert [name.hex for name in names] == [each[:16].hex() for each in hashed(tokens).block_hashes]
    expected = BlockKeys()
    ShardKeys(SPEC, kvclient.Shard()).extend(expected, names)
    assert engine_keys(tokens) == [list(expected)]
    assert not set(names) & set(expected)


def test_no_token_is_read_where_the_engine_has_hashed_them() -> None:
    class Unread(Request):
        @property
        def all_token_ids(self) -> list[int]:
            raise AssertionError("tokens are read")

        @all_token_ids.setter
        def all_token_ids(self, tokens: list[int]) -> None:
            pass

    source = KeySource(SPEC, WHOLE, hashes())
    source.check(hashed(list(range(16))))
    request: Any = Unread("r", list(range(16)), 1)
    request.block_hashes = hashed(list(range(16))).block_hashes
    assert [list(each) for each in RequestKeys(source, request).upto(4)] == engine_keys(list(range(16)))


def test_what_the_hashes_do_not_hold_is_in_the_keys() -> None:
    tokens = list(range(16))
    variants = {
        "plain": engine_keys(tokens)[0],
        "adapter": engine_keys(tokens, adapter="a:1", lora_request=object())[0],
        "the adapter's other files": engine_keys(tokens, adapter="a:2", lora_request=object())[0],
        "embeddings": engine_keys(tokens, prompt_embeds=torch.ones(16, 4))[0],
        "embeddings of another type": engine_keys(tokens, prompt_embeds=torch.ones(16, 4).bfloat16())[0],
        "embeddings of another width": engine_keys(tokens, prompt_embeds=torch.ones(16, 8))[0],
        "first of two": engine_keys(tokens, shards(2))[0],
        "second of two": engine_keys(tokens, shards(2))[1],
    }
    everything = [key for each in variants.values() for key in each]
    assert len(set(everything)) == 4 * len(variants)


def test_keys_grow_with_the_engines_hashes() -> None:
    request = hashed(list(range(16)))
    every, request.block_hashes = request.block_hashes, request.block_hashes[:2]
    keys = RequestKeys(KeySource(SPEC, shards(2), hashes()), request)
    first = [list(each) for each in keys.upto(2)]
    request.block_hashes.extend(every[2:])
    assert [list(each) for each in keys.upto(4)] == engine_keys(list(range(16)), shards(2))
    assert [list(each)[:2] for each in keys.upto(4)] == first
    assert keys.before(range(2), 2) == [each[1] for each in first]
    assert len(set(keys.before(range(2), 0)) | {key for each in first for key in each}) == 6


@pytest.mark.parametrize("known", [0, 1, 2, 4])
@pytest.mark.parametrize(("first", "last"), [(0, 1), (0, 4), (1, 2), (2, 4)])
def test_a_run_has_its_keys_and_the_key_before_it(known: int, first: int, last: int) -> None:
    source = KeySource(SPEC, shards(2), hashes())
    keys = RequestKeys(source, hashed(list(range(16))))
    keys.upto(known)
    of_run, parents = keys.run(range(2), first, last)
    plain = RequestKeys(source, hashed(list(range(16))))
    assert [list(each) for each in of_run] == [list(each) for each in plain.between(range(2), first, last)]
    assert parents == plain.before(range(2), first)


def test_hashes_that_are_not_what_they_are_said_to_be_are_refused() -> None:
    request = hashed(list(range(16)))
    request.block_hashes[0] = hashlib.sha256(b"another seed").digest()
    with pytest.raises(UnsupportedError, match="keys=tokens"):
        RequestKeys(KeySource(SPEC, WHOLE, hashes()), request)


def test_a_short_hash_names_no_block() -> None:
    with pytest.raises(InvalidArgumentError, match="16 bytes"):
        BlockKeys().extend_hashes([b"x" * 16], 1)
    with pytest.raises(TypeError):
        BlockKeys().extend_hashes(["x" * 32], 1)  # type: ignore[list-item]


@pytest.mark.parametrize("follow", [True, False])
def test_a_session_that_goes_on_is_certain_only_if_the_engine_drops_hashes_with_tokens(follow: bool) -> None:
    request = hashed(list(range(8)))
    keys = RequestKeys(KeySource(SPEC, WHOLE, hashes(follow)), request)
    keys.upto(2)
    assert keys.certain
    tokens = [*range(7), 99, 100, 101, 102, 103]
    request.prompt_token_ids = tokens
    if follow:
        request.block_hashes = hashed(tokens).block_hashes
    assert keys.certain == follow
    assert list(keys.upto(2)[0]) == engine_keys([*tokens, *range(4)])[0][:2] or not follow
    assert keys.certain == follow


# ---- from tokens ----


def test_the_tokens_are_hashed_once_for_all_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed_tokens = 0

    class Counted(kvclient.KeyChain):
        def extend(self, tokens: Any) -> BlockKeys:
            nonlocal hashed_tokens
            hashed_tokens += len(tokens)
            return super().extend(tokens)

    monkeypatch.setattr(keys_module, "KeyChain", Counted)
    found = RequestKeys(KeySource(SPEC, shards(8)), Request("r", list(range(64)), 1)).upto(16)
    assert hashed_tokens == 64
    assert len({key for each in found for key in each}) == 8 * 16


@pytest.mark.parametrize("hashed_by_vllm", [True, False])
def test_keys_of_a_part_are_those_of_the_whole(hashed_by_vllm: bool) -> None:
    """Also if nothing before the part has been asked for, as of a window, whose other keys are never derived."""
    source = KeySource(SPEC, shards(3), hashes() if hashed_by_vllm else None)
    whole = [list(each) for each in RequestKeys(source, hashed(list(range(40)))).upto(10)]
    for first, last in ((0, 10), (7, 10), (7, 9), (9, 10), (2, 3)):
        keys = RequestKeys(source, hashed(list(range(40))))
        keys.whole([1], 5)
        assert [list(each) for each in keys.between([2, 1], first, last)] == [
            whole[2][first:last],
            whole[1][first:last],
        ]
        assert keys.before([2, 1], first) == (
            [whole[2][first - 1], whole[1][first - 1]] if first else [keys.roots[2], keys.roots[1]]
        )
        assert [list(each)[:10] for each in keys.upto(10)] == whole


def test_keys_of_shards_are_derived_from_the_chain() -> None:
    names = kvclient.KeyChain(SPEC).extend(list(range(16)))
    found = RequestKeys(KeySource(SPEC, shards(2)), Request("r", list(range(16)), 1)).upto(4)
    for shard, keys in zip(shards(2), found, strict=True):
        expected = BlockKeys()
        ShardKeys(SPEC, shard).extend(expected, names)
        assert list(keys) == list(expected)


# ---- how vLLM hashes ----


@pytest.fixture
def of_vllm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., EngineHashes | None]:
    pytest.importorskip("vllm", reason="vLLM is not installed (scripts/python_env.sh --vllm)")
    from types import SimpleNamespace

    from kvclient.vllm.engine_hashes import engine_hashes

    def ask(algorithm: str = "sha256", seed: str | None = "7", **config: Any) -> EngineHashes | None:
        if seed is None:
            monkeypatch.delenv("PYTHONHASHSEED", raising=False)
        else:
            monkeypatch.setenv("PYTHONHASHSEED", seed)
        cache = SimpleNamespace(prefix_caching_hash_algo=algorithm)
        return engine_hashes(SimpleNamespace(cache_config=cache, **config), SimpleNamespace(hash_block_size=4), 4)

    return ask


def test_algorithm_and_seed_are_in_the_text(of_vllm: Callable[..., EngineHashes]) -> None:
    texts = [of_vllm("sha256", "7").text, of_vllm("sha256", "8").text, of_vllm("sha256_cbor", "7").text]
    assert len(set(texts)) == 3
    assert texts[0] == of_vllm("sha256", "7").text


def test_hashes_that_others_can_forge_or_do_not_have_are_not_used(of_vllm: Callable[..., Any]) -> None:
    assert of_vllm("xxhash") is None
    assert of_vllm(num_hash_lookahead_tokens=1) is None
    from vllm.v1.core import kv_cache_utils

    drawn = not hasattr(kv_cache_utils, "resolve_none_hash_seed")
    assert (of_vllm(seed=None) is None) == drawn


def test_the_hash_of_a_first_block_is_the_one_that_vllm_gives(of_vllm: Callable[..., EngineHashes]) -> None:
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request as VllmRequest

    ours = of_vllm()
    init_none_hash(sha256)
    request = VllmRequest(
        request_id="r",
        prompt_token_ids=list(range(9)),
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        block_hasher=get_request_block_hasher(4, sha256),
    )
    assert len(request.block_hashes) == 2
    assert ours.check(request, 4)
