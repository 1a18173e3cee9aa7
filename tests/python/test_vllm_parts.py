"""kvclient.vllm without vLLM: options, keys, layouts, planning."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.errors import InvalidArgumentError, UnsupportedError
from kvclient.torch import geometry_of
from kvclient.vllm import ConnectorOptions
from kvclient.vllm.keys import KeySource, RequestKeys
from kvclient.vllm.layout import read_layout
from kvclient.vllm.scheduler import SchedulerSide
from kvclient.vllm.stats import Counters
from support.cpu_store_worker import SPEC as SPEC_OF_CPU_STORE
from support.paged_pool import Pool
from support.paged_step import Cached as CachedRequests
from support.paged_step import NewRequest, Output, Request
from support.specs import small_spec
from support.waiting import eventually
from support.worker import Worker

SPEC = small_spec()


# ---- options ----


def test_options_have_defaults_and_take_what_json_gives() -> None:
    assert ConnectorOptions.parse({"socket": "/s"}) == ConnectorOptions(socket="/s")
    parsed = ConnectorOptions.parse({"socket": "/s", "publish": "off", "load": "sync", "import_timeout_s": 2})
    assert (parsed.publish, parsed.load, parsed.import_timeout_s) == (False, "sync", 2.0)
    assert ConnectorOptions.parse(None).socket


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"sockets": "/s"}, "sockets"),
        ({"publish": "maybe"}, "publish"),
        ({"load": "lazy"}, "load"),
        ({"keys": "hashes"}, "keys"),
        ({"max_sms": -1}, "max_sms"),
        ({"min_prefix_tokens": "64"}, "min_prefix_tokens"),
        ({"verify": 1}, "verify"),
        ({"verify_one_in": -1}, "verify_one_in"),
        ({"wait_for_computing_s": -1}, "wait_for_computing_s"),
    ],
)
def test_a_wrong_option_is_named(config: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        ConnectorOptions.parse(config)


# ---- keys ----


def request(tokens: list[int], **fields: Any) -> Any:
    made = Request("r", tokens, 1)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def keys_of(tokens: list[int], shards: int = 1, adapter: str = "", **fields: Any) -> list[list[kvclient.BlockKey]]:
    parts = [kvclient.Shard(tp_rank=i, tp_size=shards) for i in range(shards)]
    made = request(tokens, **fields)
    return [list(keys) for keys in RequestKeys(KeySource(SPEC, parts), made, adapter).upto(len(tokens) // 4)]


def image(identifier: str, offset: int, length: int) -> Any:
    return SimpleNamespace(identifier=identifier, mm_position=SimpleNamespace(offset=offset, length=length))


def test_keys_are_those_of_the_chain_and_grow_with_the_request() -> None:
    tokens = list(range(20))
    assert keys_of(tokens)[0] == list(kvclient.KeyChain(SPEC).extend(tokens))
    growing = request(tokens[:8])
    keys = RequestKeys(KeySource(SPEC, [kvclient.Shard()]), growing)
    assert len(keys.upto(2)[0]) == 2
    growing.all_token_ids += tokens[8:]
    assert list(keys.upto(5)[0]) == keys_of(tokens)[0]
    assert keys.before(range(1), 0) == [kvclient.KeyChain(SPEC).parent]
    assert keys.before(range(1), 3) == [keys_of(tokens)[0][2]]


def test_shards_have_keys_of_their_own() -> None:
    first, second = keys_of(list(range(8)), shards=2)
    assert not set(first) & set(second)


def test_what_changes_the_content_changes_the_keys() -> None:
    tokens = list(range(16))
    variants = {
        "plain": keys_of(tokens),
        "salt": keys_of(tokens, cache_salt="a"),
        "other salt": keys_of(tokens, cache_salt="b"),
        "lora": keys_of(tokens, adapter="a:1", lora_request=object()),
        "other lora": keys_of(tokens, adapter="a:2", lora_request=object()),
        "embeddings": keys_of(tokens, prompt_embeds=torch.ones(16, 3)),
        "other embeddings": keys_of(tokens, prompt_embeds=torch.zeros(16, 3)),
        "embeddings of another type": keys_of(tokens, prompt_embeds=torch.ones(16, 3, dtype=torch.bfloat16)),
    }
    for (name, ours), (other, theirs) in itertools.combinations(variants.items(), 2):
        assert not set(ours[0]) & set(theirs[0]), (name, other)
    assert keys_of(tokens, cache_salt="a") == variants["salt"]


def test_a_request_whose_adapter_is_not_known_has_no_keys() -> None:
    with pytest.raises(InvalidArgumentError, match="adapter"):
        keys_of(list(range(16)), lora_request=object())


def test_an_image_that_a_streaming_session_adds_changes_the_blocks_that_it_reaches() -> None:
    """Keys of the blocks before were derived when the request still was plain text."""
    session = request(list(range(6)), mm_features=[])
    keys = RequestKeys(KeySource(SPEC, [kvclient.Shard()]), session)
    before = list(keys.upto(1)[0])
    session.mm_features.append(image("cat", 6, 4))
    session.prompt_token_ids = list(range(16))
    session.all_token_ids += list(range(6, 16))
    assert list(keys.upto(4)[0]) == keys_of(list(range(16)), mm_features=[image("cat", 6, 4)])[0]
    assert list(keys.upto(4)[0])[:1] == before


def test_tokens_that_a_streaming_session_drops_are_in_no_key() -> None:
    session = request(list(range(8)))
    keys = RequestKeys(KeySource(SPEC, [kvclient.Shard()]), session)
    keys.upto(2)
    # The last token sampled is not kept
    session.prompt_token_ids = [*range(7), 99, 100, 101, 102, 103]
    session.all_token_ids[:] = session.prompt_token_ids
    assert list(keys.upto(3)[0]) == keys_of(list(session.prompt_token_ids))[0]


def test_an_image_changes_the_blocks_from_where_it_begins() -> None:
    tokens = list(range(16))
    plain, cat = keys_of(tokens)[0], keys_of(tokens, mm_features=[image("cat", 5, 4)])[0]
    dog, moved = (
        keys_of(tokens, mm_features=[image("dog", 5, 4)])[0],
        keys_of(tokens, mm_features=[image("cat", 6, 4)])[0],
    )
    assert plain[0] == cat[0] == dog[0] == moved[0]
    for index in (1, 2, 3):
        assert len({plain[index], cat[index], dog[index], moved[index]}) == 4


# ---- layouts ----

LAYERS, BLOCKS, TOKENS, HEADS, SIZE = 3, 11, 4, 2, 8


def numbered(*shape: int) -> torch.Tensor:
    count = 1
    for size in shape:
        count *= size
    return torch.arange(count, dtype=torch.float32).reshape(shape)


def layer_tensors(layout: str) -> list[torch.Tensor]:
    """Per-layer tensors as vLLM versions have registered them."""
    if layout == "kv first":
        return [numbered(2, BLOCKS, TOKENS, HEADS, SIZE) for _ in range(LAYERS)]
    if layout == "blocks first":
        return [numbered(BLOCKS, 2, TOKENS, HEADS, SIZE) for _ in range(LAYERS)]
    if layout == "heads before tokens":
        return [numbered(BLOCKS, 2, HEADS, TOKENS, SIZE).transpose(2, 3) for _ in range(LAYERS)]
    if layout == "mla":
        return [numbered(BLOCKS, TOKENS, 36) for _ in range(LAYERS)]
    if layout == "cross layer":
        return list(numbered(BLOCKS, LAYERS, 2, TOKENS, HEADS, SIZE).unbind(1))
    # Newer: logical [L, B, H, N, C], one buffer, in any of six physical orders.
    sizes = {"L": LAYERS, "B": BLOCKS, "H": HEADS, "N": TOKENS, "C": 2 * SIZE}
    buffer = numbered(*(sizes[dim] for dim in layout))
    return list(buffer.permute([layout.index(dim) for dim in "LBHNC"]).unbind(0))


ORDERS = ["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]
OLDER = ["kv first", "blocks first", "heads before tokens", "mla", "cross layer"]


@pytest.mark.parametrize("layout", OLDER + ORDERS)
def test_every_layout_gives_each_blocks_own_bytes(layout: str) -> None:
    tensors = layer_tensors(layout)
    read = read_layout({f"layer.{i}": tensor for i, tensor in enumerate(tensors)}, BLOCKS)
    found = geometry_of(read.tensors, 0)
    assert found.geometry.block_count == BLOCKS
    assert (
        found.geometry.block_bytes == read.block_bytes == sum(t.numel() * t.element_size() for t in tensors) // BLOCKS
    )
    storages = {each.address: tensor.untyped_storage() for each, tensor in zip(found.segments, tensors, strict=False)}
    for block in range(BLOCKS):
        got = b""
        for part in found.geometry.parts:
            memory = bytes(storages[found.segments[part.segment].address])
            for repeat in range(part.count):
                start = part.offset + block * part.block_stride + repeat * part.repeat_stride
                got += memory[start : start + part.chunk_bytes]
        assert got == b"".join(t[block].contiguous().numpy().tobytes() for t in read.tensors)
        dim = 1 if layout == "kv first" else 0
        same = [t.select(dim, block).reshape(-1).sort().values for t in tensors]
        assert torch.equal(torch.cat(same), torch.cat([t[block].reshape(-1).sort().values for t in read.tensors]))


def test_layouts_whose_blocks_have_the_same_bytes_have_the_same_text() -> None:
    texts = {name: read_layout({"a": layer_tensors(name)[0]}, BLOCKS).text for name in OLDER}
    assert texts["kv first"] == texts["blocks first"]
    assert texts["blocks first"] != texts["heads before tokens"]


def test_heads_and_tokens_that_are_as_many_are_told_apart() -> None:
    tokens_first = numbered(BLOCKS, 2, 4, 4, SIZE)
    heads_first = numbered(BLOCKS, 2, 4, 4, SIZE).transpose(2, 3)
    assert read_layout({"a": tokens_first}, BLOCKS).text != read_layout({"a": heads_first}, BLOCKS).text
    # A dimension of one has no order: any stride will do
    one_head = numbered(BLOCKS, 2, 4, 1, SIZE)
    strided = one_head.as_strided(one_head.shape, (*one_head.stride()[:3], 1, 1))
    assert read_layout({"a": one_head}, BLOCKS).text == read_layout({"a": strided}, BLOCKS).text


def test_smaller_blocks_of_a_kernel_are_put_together() -> None:
    tensor = numbered(2, BLOCKS * 4, TOKENS, HEADS, SIZE)
    read = read_layout({"a": tensor}, BLOCKS)
    assert read.tensors[0].shape == (BLOCKS, 2, 4, TOKENS, HEADS, SIZE)
    assert torch.equal(read.tensors[0][3], tensor[:, 12:16])


def test_layers_that_share_their_kv_count_once() -> None:
    tensor = numbered(BLOCKS, 2, TOKENS, HEADS, SIZE)
    assert len(read_layout({"a": tensor, "b": tensor}, BLOCKS).tensors) == 1


def test_what_cannot_be_read_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"layer s .*list"):
        read_layout({"s": [numbered(BLOCKS, 2)]}, BLOCKS)  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="no dimensions"):
        read_layout({"a": numbered(2, 3)}, BLOCKS)
    with pytest.raises(UnsupportedError, match="2 dimensions can count"):
        read_layout({"a": numbered(2, 2, 5)}, 2)
    assert read_layout({"a": numbered(2, 2, 5)}, 2, lambda _: 1).tensors[0].shape == (2, 2, 5)
    with pytest.raises(UnsupportedError, match="no KV tensors"):
        read_layout({}, BLOCKS)


# ---- planning ----


@pytest.fixture
def side(kvmd: PrivateDaemon) -> SchedulerSide:
    made = SchedulerSide(ConnectorOptions(socket=kvmd.socket, min_prefix_tokens=4))
    made.attach(kvclient.Client(kvmd.socket, name="s"), SPEC, [kvclient.Shard()])
    made.bind_pool(Pool(32))
    return made


def test_a_side_that_has_left_keeps_no_client(kvmd: PrivateDaemon) -> None:
    client = kvclient.Client(kvmd.socket, name="s")
    before = sys.getrefcount(client)
    left = SchedulerSide(ConnectorOptions(socket=kvmd.socket))
    left.attach(client, SPEC, [kvclient.Shard()])
    left.bind_pool(Pool(32))
    left.leave()
    assert not left.active
    assert sys.getrefcount(client) == before


def scheduled(side: SchedulerSide, tokens: list[int], name: str = "r") -> tuple[Any, Output]:
    """A request in its first step, all its blocks new, hashes given as vLLM does: before they are computed."""
    made = Request(name, tokens, 8)
    assert side.matched_tokens(made, 0) == (0, False)
    made.blocks = side._pool.take(-(-len(tokens) // 4))
    for index in range(len(tokens) // 4):
        side._pool.cache(made.blocks[index], made.content(index))
    made.num_computed_tokens = 0
    return made, Output(scheduled_new_reqs=[NewRequest(name, ([b.block_id for b in made.blocks],))])


def test_blocks_are_published_in_the_step_after_they_were_computed(side: SchedulerSide) -> None:
    made, output = scheduled(side, list(range(10)))
    plan = side.plan(output)
    assert sorted(plan.begin) == sorted(block.block_id for block in made.blocks)
    assert plan.publish == []
    made.num_computed_tokens = 10
    [run] = side.plan(Output()).publish
    assert (run.blocks, run.depth) == ([block.block_id for block in made.blocks[:2]], 0)
    assert list(run.keys[0]) == list(kvclient.KeyChain(SPEC).extend(list(range(8))))
    assert side.plan(Output()).publish == []


def test_tokens_on_their_way_are_not_published(side: SchedulerSide) -> None:
    made, output = scheduled(side, list(range(8)))
    side.plan(output)
    made.num_computed_tokens, made.num_in_flight_tokens = 8, 4
    assert side.plan(Output()).publish[0].blocks == [made.blocks[0].block_id]
    made.num_in_flight_tokens = 0
    [run] = side.plan(Output()).publish
    assert (run.blocks, run.depth) == ([made.blocks[1].block_id], 1)


def test_a_block_is_withdrawn_before_it_is_used_again_even_for_the_same_content(side: SchedulerSide) -> None:
    made, output = scheduled(side, list(range(8)))
    side.plan(output)
    made.num_computed_tokens = 8
    side.plan(Output())
    block, content = made.blocks[0], made.content(0)
    again = Output(scheduled_new_reqs=[NewRequest("other", ([block.block_id],))])
    assert side.plan(again).begin == []  # a hit in the prefix cache: nothing is written
    side._pool.evict(block)
    side._pool.cache(block, content)
    assert side.plan(again).begin == [block.block_id]


def test_blocks_to_zero_and_targets_of_copies_are_withdrawn(side: SchedulerSide) -> None:
    output = Output()
    output.new_block_ids_to_zero = [0, 7]  # type: ignore[attr-defined]
    output.kv_cache_block_copies = [SimpleNamespace(src_block_id=3, dst_block_id=9)]  # type: ignore[attr-defined]
    assert sorted(side.plan(output).begin) == [7, 9]


def test_what_a_finished_request_leaves_is_published_unless_its_blocks_are_used_again(side: SchedulerSide) -> None:
    for name, reused in (("a", False), ("b", True)):
        made, output = scheduled(side, [hash(name) % 7 + i for i in range(8)], name)
        side.plan(output)
        made.num_computed_tokens = 8
        side.finished(made)
        ids = [block.block_id for block in made.blocks]
        if reused:
            side._pool.evict(made.blocks[1])
        plan = side.plan(Output())
        assert [run.blocks for run in plan.publish] == ([] if reused else [ids])


def test_a_reset_of_the_prefix_cache_withdraws_everything_once(side: SchedulerSide) -> None:
    made, output = scheduled(side, list(range(8)))
    side.plan(output)
    made.num_computed_tokens = 8
    side.plan(Output())
    side._pool.reset()
    assert side.matched_tokens(Request("new", list(range(8)), 1), 0) == (0, False)
    assert side.plan(Output()).withdraw_all
    assert not side.plan(Output()).withdraw_all
    side.reset()
    assert side.plan(Output()).withdraw_all


def test_nothing_is_published_while_a_step_waits_for_a_load(side: SchedulerSide) -> None:
    side._options = ConnectorOptions(socket=side._options.socket, load="sync", min_prefix_tokens=4)
    made, output = scheduled(side, list(range(8)))
    side.plan(output)
    made.num_computed_tokens = 8
    loading = Request("l", list(range(20, 32)), 1)
    side.matched_tokens(loading, 0)
    side.allocated(loading, ([20, 21, 22],), 8)
    plan = side.plan(Output())
    assert plan.publish == []
    assert [(load.request_id, load.blocks, load.wait) for load in plan.loads] == [("l", [20, 21], True)]
    assert set(plan.begin) >= {20, 21, 22}
    side.loaded((), {"l"})
    assert [run.blocks for run in side.plan(Output()).publish] == [[block.block_id for block in made.blocks]]


def test_requests_that_must_compute_everything_are_left_alone(side: SchedulerSide) -> None:
    made = Request("r", list(range(40)), 1)
    made.skip_reading_prefix_cache = True
    assert side.matched_tokens(made, 0) == (0, False)
    assert side.matched_tokens(Request("p", list(range(40)), 1), 2) == (0, False)


def test_preempted_requests_start_over(side: SchedulerSide) -> None:
    made, output = scheduled(side, list(range(8)))
    side.plan(output)
    made.num_computed_tokens = 0
    made.blocks = side._pool.take(2)
    for index, block in enumerate(made.blocks):
        side._pool.cache(block, made.content(index))
    ids = [block.block_id for block in made.blocks]
    resumed = Output(scheduled_cached_reqs=CachedRequests(["r"], {"r"}, [(ids,)]))
    plan = side.plan(resumed)
    assert (sorted(plan.begin), plan.publish) == (sorted(ids), [])
    made.num_computed_tokens = 8
    assert [run.blocks for run in side.plan(Output()).publish] == [ids]


@pytest.fixture
def offered(kvmd: PrivateDaemon, side: SchedulerSide) -> Any:
    """The side, with eight blocks of tokens 100, 101, … published by a peer that keeps its client open."""
    peer = kvclient.Client(kvmd.socket, name="peer")
    model = peer.declare_model(SPEC)
    region = peer.allocate_region(model, kvclient.Geometry.contiguous(8, 256), name="offered")
    chain = kvclient.KeyChain(SPEC)
    root = chain.parent
    keys = list(chain.extend(list(range(100, 132))))
    region.publish_run(keys, root, 0, region.begin_writes(list(range(8))))
    region.flush()
    side._client.declare_model(SPEC)
    yield side
    peer.close()


def failing(side: SchedulerSide, name: str, failed: bool = True) -> int:
    """A request asks, is given blocks and its load ends; how many tokens it was offered."""
    made = Request(name, list(range(100, 132)), 1)
    tokens, background = side.matched_tokens(made, 0)
    if tokens == 0:
        return 0
    assert background
    side.allocated(made, ([10, 11, 12, 13, 14, 15, 16, 17],), tokens)
    side.plan(Output())
    if failed:
        side.failed({10})
    side.loaded({name}, ())
    return tokens


def test_a_request_whose_loads_fail_is_computed_in_the_end(offered: SchedulerSide) -> None:
    assert failing(offered, "r") == 28
    assert failing(offered, "r") == 28
    assert failing(offered, "r") == 0
    assert failing(offered, "other") == 28


def test_a_load_that_succeeds_does_not_count(offered: SchedulerSide) -> None:
    for _ in range(5):
        assert failing(offered, "r", failed=False) == 28


def test_loads_that_fail_one_after_the_other_are_given_up_for_a_while(
    offered: SchedulerSide, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(8):
        assert failing(offered, f"r{number}", failed=number != 3) == 28
    for number in range(8, 12):
        assert failing(offered, f"r{number}") == 28
    assert failing(offered, "later") == 0
    assert "kvctl doctor" in caplog.text
    now = time.perf_counter()
    monkeypatch.setattr("kvclient.vllm.scheduler.time.perf_counter", lambda: now + 61)
    assert failing(offered, "later") == 28  # one is tried
    assert failing(offered, "and later") == 0


def test_an_engine_on_a_cpu_leaves_no_memory_behind(kvmd: PrivateDaemon, start_worker: Callable[..., Worker]) -> None:
    owner = start_worker("support.cpu_store_worker", kvmd.socket, "owner")
    client = kvclient.Client(kvmd.socket, name="peer")
    keys = kvclient.KeyChain(client.declare_model(SPEC_OF_CPU_STORE)).extend(list(range(16)))
    owner.call("publish", list(range(16)))
    eventually(lambda: len(client.find(keys)) == 4)
    owner.kill()
    eventually(lambda: len(client.find(keys)) == 0)
    assert client.reclaim_orphans().regions == 0


def test_counters_are_taken_once() -> None:
    counters = Counters()
    counters.add("matched_tokens", 3)
    counters.add("matched_tokens", 4)
    counters.add("failed_blocks", 0)
    counters.time("find", 0.5)
    assert counters.take() == {"matched_tokens": 7, "find_seconds": [0.5]}
    assert counters.take() == {}
    assert counters.totals() == {"matched_tokens": 7, "find_seconds": 0.5, "find_count": 1}
