"""Compared with vLLM's own code: how long a hit is over several KV-cache groups, and where their blocks lie."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvclient.errors import UnsupportedError
from kvclient.torch import geometry_of
from kvclient.vllm.groups import KvGroup, groups_of, unit_of
from kvclient.vllm.hits import longest_hit
from kvclient.vllm.layout import KvLayout, read_layout
from kvclient.vllm.refusals import refusal
from kvclient.vllm.releases import fails_by_request

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)
if not fails_by_request():
    pytest.skip("this vLLM does not recover failed loads of several groups", allow_module_level=True)

BLOCK = 32


#: In place of a window: the group is of states.
STATE = -1


def chunks(tokens: int) -> int:
    """In place of a window: the group attends within chunks of so many tokens."""
    return -tokens


def spec_of(window: int = 0, heads: int = 2, size: int = 32, tokens: int = BLOCK) -> Any:
    """``tokens``: of a block."""
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        MambaSpec,
        SlidingWindowSpec,
    )

    if window == STATE:
        page = 2 * BLOCK * heads * size * 4  # attention's
        shapes, dtypes = ((3, 24), (heads, size, size)), (torch.bfloat16, torch.float32)
        states: dict[str, Any] = {"shapes": shapes, "dtypes": dtypes, "page_size_padded": page}
        return MambaSpec(block_size=BLOCK, mamba_cache_mode="align", **states)
    fields: dict[str, Any] = {
        "block_size": tokens,
        "num_kv_heads": heads,
        "head_size": size,
        "dtype": torch.float32,
    }
    if window < STATE:
        return ChunkedLocalAttentionSpec(attention_chunk_size=-window, **fields)
    return SlidingWindowSpec(sliding_window=window, **fields) if window else FullAttentionSpec(**fields)


def groups(*specs: tuple[Any, int]) -> list[Any]:
    """``specs``: of each group, with its number of layers."""
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec

    return [
        KVCacheGroupSpec([f"model.layers.{100 * number + layer}" for layer in range(layers)], spec)
        for number, (spec, layers) in enumerate(specs)
    ]


# ---- hits ----


class Cached:
    """vLLM's coordinator over a pool that holds some of a prompt's blocks."""

    def __init__(
        self,
        windows: Sequence[int],
        blocks: int,
        drafts: Sequence[int] | None = None,
        scales: Sequence[int] | None = None,
    ) -> None:
        """``blocks``: of ``BLOCK`` tokens. ``scales``: of each group, so many of them make one of its blocks.

        ``drafts``: groups that vLLM knows to have layers of a draft that looks ahead; empty: it does not know.
        """
        from vllm.v1.core.kv_cache_coordinator import get_kv_cache_coordinator
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
        from vllm.v1.kv_cache_interface import KVCacheConfig

        scales = scales or [1] * len(windows)
        specs = [spec_of(window, tokens=BLOCK * scale) for window, scale in zip(windows, scales, strict=True)]
        of = groups(*((spec, 1) for spec in specs))
        for number in drafts or ():
            of[number].is_eagle_group = True
        config = KVCacheConfig(num_blocks=len(windows) * blocks + 1, kv_cache_tensors=[], kv_cache_groups=of)
        self.groups = groups_of(config, drafts_ahead=drafts is not None)
        engine: Any = SimpleNamespace(
            cache_config=SimpleNamespace(
                block_size=specs[0].block_size, prefix_match_unit=None, enable_prefix_caching=True
            ),
            parallel_config=SimpleNamespace(decode_context_parallel_size=1),
            kv_transfer_config=None,
        )
        scheduler, self.tokens = resolve_kv_cache_block_sizes(config, engine)
        self.unit = unit_of(self.groups)
        assert scheduler == self.unit * self.tokens
        self._coordinator = get_kv_cache_coordinator(
            config,
            max_model_len=BLOCK * blocks,
            max_in_flight_tokens=BLOCK * blocks,
            use_eagle=drafts is not None,
            enable_caching=True,
            enable_kv_cache_events=False,
            dcp_world_size=1,
            pcp_world_size=1,
            scheduler_block_size=scheduler,
            hash_block_size=self.tokens,
        )
        names = BLOCK * blocks // self.tokens
        self._hashes: list[Any] = [bytes([index]) * 32 for index in range(names)]
        self.present = [[False] * (names // group.scale) for group in self.groups]

    def add(self, group: int, index: int) -> None:
        from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

        pool, scale = self._coordinator.block_pool, self.groups[group].scale
        [block] = pool.get_new_blocks(1)
        content = make_block_hash_with_group_id(self._hashes[(index + 1) * scale - 1], group)
        pool._insert_block_hash(content, block, num_tokens=(index + 1) * scale * self.tokens)
        self.present[group][index] = True

    def theirs(self, most: int) -> int:
        """Of at most so many blocks of ``BLOCK`` tokens; the hit in units."""
        hit = int(self._coordinator.find_longest_cache_hit(self._hashes, most * BLOCK)[1])
        assert hit % (self.unit * self.tokens) == 0
        return hit // (self.unit * self.tokens)

    def ours(self, most: int, of: Sequence[KvGroup] | None = None) -> int:
        last = most * BLOCK // (self.unit * self.tokens)
        for group, present in zip(self.groups, self.present, strict=True):
            if group.ahead:
                last = min(last, (len(present) - 1) // (self.unit // group.scale))  # Lookups.last

        if last <= 0:
            return 0

        def run(numbers: Sequence[int], begin: int, end: int) -> int:
            for index in range(begin, end):
                if not all(self.present[number][index] for number in numbers):
                    return index - begin
            return end - begin

        return longest_hit(of or self.groups, 0, last, self.tokens, run)


def random_cases(drafts: bool = False, sizes: bool = False) -> list[tuple[Cached, int]]:
    """``drafts``: of engines with a draft that looks ahead, which vLLM runs beside neither chunks nor states.

    ``sizes``: blocks of groups differ in size, which is supported beside neither of them.
    """
    dice, cases = random.Random(14), []
    for _ in range(600):
        windows = [0] * dice.choice((1, 1, 2) if drafts else (0, 1, 1, 1, 2))
        windows += [dice.choice((2, 31, 32, 33, 34, 64, 65, 66, 97, 200)) for _ in range(dice.choice((1, 1, 2, 3)))]
        if not drafts and not sizes:
            windows += [STATE] * dice.choice((0, 0, 1, 2))
            windows += [chunks(BLOCK * dice.choice((1, 2, 3, 5))) for _ in range(dice.choice((0, 0, 1, 2)))]
        dice.shuffle(windows)
        blocks = dice.randrange(1, 40 if sizes else 14)
        scales = [dice.choice((1, 1, 2, 3, 4)) for _ in windows] if sizes else None
        cached = Cached(windows, blocks, dice.choice(([], [dice.randrange(len(windows))])) if drafts else None, scales)
        density = dice.choice((0.6, 0.8, 0.9, 1.0))
        for group, window in enumerate(windows):
            count = len(cached.present[group])
            reach = dice.randrange(count // 2, count + 1)
            for index in range(count):
                if (index < reach) if not window else (dice.random() < density):
                    cached.add(group, index)
        cases.append((cached, dice.randrange(0, blocks + 1)))
    return cases


def test_a_hit_is_as_long_as_vllms_own_would_be() -> None:
    cases = random_cases()
    for cached, most in cases:
        assert cached.ours(most) == cached.theirs(most), (cached.groups, cached.present, most)
    lengths = {cached.theirs(most) for cached, most in cases}
    assert len(lengths) > 8


def test_so_is_one_with_a_draft_or_shorter() -> None:
    """Where several windows shorten the hit in turn, vLLM looks only once whether a group has the block after it."""
    cases = random_cases(drafts=True)
    shorter = 0
    for cached, most in cases:
        assert cached.ours(most) <= cached.theirs(most), (cached.groups, cached.present, most)
        shorter += cached.ours(most) < cached.theirs(most)
    assert shorter < 5
    lengths = {cached.theirs(most) for cached, most in cases}
    assert len(lengths) > 8


def test_so_is_one_of_groups_whose_blocks_differ_in_size() -> None:
    cases = random_cases(sizes=True)
    for cached, most in cases:
        assert cached.ours(most) == cached.theirs(most), (cached.groups, cached.present, most)
    lengths = {cached.theirs(most) * cached.unit for cached, most in cases}
    assert len(lengths) > 12
    assert sum(cached.unit > 1 for cached, _ in cases) > 300


def test_so_is_one_of_these_with_a_draft_or_vllm_misses_the_first_window() -> None:
    """Where a prompt's first blocks are less than a window, vLLM rounds down before it drops a block, and after."""
    cases, shorter, longer = random_cases(drafts=True, sizes=True), 0, 0
    for cached, most in cases:
        ours, theirs = cached.ours(most), cached.theirs(most)
        shorter += ours < theirs
        if ours <= theirs:
            continue
        longer += 1
        tokens = ours * cached.unit * cached.tokens
        of = zip(cached.groups, cached.present, strict=True)
        needed = [(group.first_block(tokens, cached.tokens), group, present) for group, present in of]
        assert any(group.partial and group.ahead and not first for first, group, _ in needed)
        for first, group, present in needed:
            assert all(present[first : tokens // (group.scale * cached.tokens) + group.ahead])
    assert shorter < 5
    assert longer < 15


@pytest.mark.parametrize("window", [0, 64])
def test_so_is_one_of_a_single_group_with_a_draft(window: int) -> None:
    """Whose last block vLLM drops without a look at the one after it."""
    for blocks in range(1, 8):
        cached = Cached([window], blocks, [])
        for present in range(blocks):
            assert cached.ours(blocks) == cached.theirs(blocks) == max(0, present - 1)
            cached.add(0, present)


def differ(wrong: Callable[[KvGroup], KvGroup], drafts: bool = False, sizes: bool = False) -> int:
    """In how many cases the comparison sees a rule that takes groups for others."""
    cases = random_cases(drafts, sizes)
    return sum(
        cached.ours(most, [wrong(each) for each in cached.groups]) != cached.theirs(most) for cached, most in cases
    )


@pytest.mark.parametrize("by", [BLOCK, -BLOCK])
def test_the_comparison_sees_a_window_that_is_a_block_off(by: int) -> None:
    def wrong(group: KvGroup) -> KvGroup:
        return replace(group, window=max(2, group.window + by)) if group.window and not group.state else group

    assert differ(wrong) > 10
    assert differ(wrong, drafts=True) > 10
    assert differ(wrong, sizes=True) > 10


@pytest.mark.parametrize("by", [BLOCK, -BLOCK])
def test_the_comparison_sees_chunks_that_are_a_block_off(by: int) -> None:
    assert differ(lambda group: replace(group, chunk=max(BLOCK, group.chunk + by)) if group.chunk else group) > 10


def test_the_comparison_sees_chunks_taken_for_windows() -> None:
    assert differ(lambda group: KvGroup(group.chunk) if group.chunk else group) > 10


@pytest.mark.parametrize("partial", [False, True])
def test_the_comparison_sees_a_group_of_a_draft_taken_for_one_of_the_model(partial: bool) -> None:
    assert differ(lambda group: replace(group, ahead=group.ahead and group.partial != partial), drafts=True) > 10


def test_the_comparison_sees_a_rule_that_wants_all_blocks_of_all_groups() -> None:
    assert differ(lambda _: KvGroup()) > 50


def test_the_comparison_sees_a_state_that_is_a_block_off() -> None:
    assert differ(lambda group: replace(group, window=2 + BLOCK) if group.state else group) > 10


def test_a_load_has_the_blocks_that_vllm_allocates() -> None:
    """What vLLM's manager leaves out as skipped is what a load leaves out."""
    from vllm.v1.core.single_type_kv_cache_manager import (
        ChunkedLocalAttentionManager,
        MambaManager,
        SlidingWindowManager,
    )

    nothing: Any = None
    [states] = groups_of(SimpleNamespace(kv_cache_groups=groups((spec_of(STATE), 1))))
    for blocks in range(1, 12):
        skipped = MambaManager.get_num_skipped_tokens(nothing, blocks * BLOCK) // BLOCK
        assert states.first_block(blocks * BLOCK, BLOCK) == skipped == blocks - 1

    for chunk in (BLOCK, 3 * BLOCK, 8 * BLOCK):
        local: Any = SimpleNamespace(attention_chunk_size=chunk)
        for blocks in range(1, 20):
            skipped = ChunkedLocalAttentionManager.get_num_skipped_tokens(local, blocks * BLOCK) // BLOCK
            assert KvGroup(chunk=chunk).first_block(blocks * BLOCK, BLOCK) == skipped

    for window in (2, 31, 32, 33, 64, 65, 200):
        for kept in (0, 3, 40):
            manager: Any = SimpleNamespace(sliding_window=window, extra_retained_tokens=kept)
            for blocks in range(1, 12):
                tokens = SlidingWindowManager.get_num_skipped_tokens(manager, blocks * BLOCK)
                for scale in (1, 2, 3):
                    needs = KvGroup(window, kept, scale=scale)
                    assert needs.first_block(blocks * BLOCK, BLOCK) == tokens // (scale * BLOCK)


# ---- states ----


class Running:
    """A request in vLLM's own manager of blocks, of a model with states, computed step by step."""

    def __init__(self, checkpoints: int, tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import KVCacheConfig
        from vllm.v1.request import Request

        init_none_hash(sha256)
        states = replace(spec_of(STATE), num_prefill_checkpoint_blocks=checkpoints, prefill_checkpoint_alignment=1)
        of = groups((states, 1), (spec_of(), 1))
        config = KVCacheConfig(num_blocks=200, kv_cache_tensors=[], kv_cache_groups=of)
        options = {"max_in_flight_tokens": 1024, "scheduler_block_size": BLOCK, "hash_block_size": BLOCK}
        self.manager = KVCacheManager(config, max_model_len=1024, enable_caching=True, **options)
        self.request: Any = Request(
            "r",
            prompt_token_ids=list(range(tokens)),
            sampling_params=SamplingParams(max_tokens=200),
            pooling_params=None,
            block_hasher=get_request_block_hasher(BLOCK, sha256),
        )

    def step(self, count: int) -> int:
        """Schedule ``count`` tokens; the block that the running state is in afterwards."""
        self.manager.new_step_starts()
        assert self.manager.allocate_slots(self.request, count) is not None
        self.request.num_computed_tokens += count
        return int(self.table()[(self.request.num_computed_tokens - 1) // BLOCK].block_id)

    def table(self) -> list[Any]:
        return list(self.manager.get_blocks("r").blocks[0])


@pytest.mark.parametrize("checkpoints", [0, 1])
@pytest.mark.parametrize("tokens", [31, 32, 33, 64, 203, 256])
def test_vllm_gives_a_hash_to_a_state_at_its_blocks_end_and_writes_it_no_more(checkpoints: int, tokens: int) -> None:
    """What publishing a state rests on (groups.py)."""
    running = Running(checkpoints, tokens)
    request, hashed = running.request, set()
    # The prompt's pieces, as vLLM's scheduler cuts them; with a checkpoint the last one need not be
    last = (tokens - 1) // BLOCK * BLOCK
    pieces = [tokens] if checkpoints else [piece for piece in (last // 2 // BLOCK * BLOCK, last) if piece] + [tokens]
    for end in [*pieces, *range(tokens + 1, tokens + 80)]:
        count = end - request.num_computed_tokens
        if count <= 0:
            continue
        if end > tokens:
            request.append_output_token_ids(7)
        state = running.step(count)
        assert state not in hashed, "a state that has a hash is written again"
        for place, block in enumerate(running.table()):
            if block.is_null or block.block_hash is None:
                continue
            hashed.add(block.block_id)
            assert block.block_hash_num_tokens == (place + 1) * BLOCK <= end
            assert block.block_id != state or end == (place + 1) * BLOCK
    assert len(hashed) >= 2


# ---- where blocks lie ----

BLOCKS = 6
ONE_RANK = SimpleNamespace(parallel_config=SimpleNamespace())


class Memory:
    """KV memory as vLLM allocates it, and as the connector reads it."""

    def __init__(self, of: list[Any], layout: str) -> None:
        from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
        from vllm.v1.kv_cache_layout import KVCacheLayout
        from vllm.v1.worker.utils import allocate_kv_cache

        named = KVCacheLayout[layout]
        cache = SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: named,
            num_gpu_blocks_override=BLOCKS,
            prefix_cache_retention_interval=None,
        )
        config: Any = SimpleNamespace(attention_config=SimpleNamespace(hisparse_config=None), cache_config=cache)
        made = get_kv_cache_config_from_groups(config, of, 1 << 30)
        self.groups = of
        self.caches = allocate_kv_cache(made, torch.device("cpu"), named)

    def read(self, text: str = "groups") -> KvLayout:
        return read_layout(self.caches, BLOCKS, lambda _: 0, text)

    def layers(self, group: int) -> list[torch.Tensor]:
        return [self.caches[name] for name in self.groups[group].layer_names]


SAME = [(spec_of(), 2), (spec_of(64), 2), (spec_of(64), 2)]
PADDED = [(spec_of(), 2), (spec_of(64), 2), (spec_of(64), 1)]
OTHER_HEADS = [(spec_of(heads=2, size=32), 2), (spec_of(64, heads=4, size=16), 2)]
STATES = [(spec_of(STATE), 2), (spec_of(), 2)]
CHUNKS = [(spec_of(chunks(96)), 2), (spec_of(), 2)]
OTHER_PAGES = [(spec_of(heads=2, size=32), 2), (spec_of(64, heads=3, size=32), 2)]
OTHER_SIZES = [(spec_of(64, tokens=64), 2), (spec_of(64, tokens=64), 1), (spec_of(size=64), 2)]
FEW_HEADS = [(spec_of(64, heads=4), 2), (spec_of(heads=1, tokens=128), 2)]


@pytest.mark.parametrize(
    ("of", "layout"),
    [
        *(
            (of, layout)
            for of in (SAME, PADDED, OTHER_HEADS, STATES, CHUNKS, OTHER_SIZES, FEW_HEADS)
            for layout in ("LBNHC", "LBHNC", "BLNHC", "BLHNC")
        ),
        (SAME, "LHBNC"),
        (SAME, "BHLNC"),
        (OTHER_PAGES, "BLNHC"),
    ],
)
def test_a_block_is_all_that_any_group_has_in_it_and_no_more(of: Any, layout: str) -> None:
    source, target = Memory(groups(*of), layout), Memory(groups(*of), layout)
    ours, theirs = source.read(), target.read()
    geometry_of(ours.tensors, 0)  # raises if blocks overlapped
    dice = torch.Generator().manual_seed(3)
    for group in range(len(of)):
        for block in range(BLOCKS):
            # Only this group writes, and only one block, which is then copied as an import does.
            for memory in (source, target):
                next(iter(memory.caches.values())).untyped_storage().fill_(0)
            for layer in source.layers(group):
                layer[block] = torch.randn(layer[block].shape, generator=dice).to(layer.dtype)
            for tensor, to in zip(ours.tensors, theirs.tensors, strict=True):
                to[block] = tensor[block]
            for layer, copied in zip(source.layers(group), target.layers(group), strict=True):
                assert torch.equal(layer, copied), (group, block)


def test_one_group_of_layers_whose_pages_differ_has_all_of_them_in_a_block() -> None:
    """A sparse-attention indexer, or a draft with other heads, beside the model's layers."""
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

    names = [f"model.layers.{layer}" for layer in range(4)]
    of_layers = {name: spec_of(heads=1 + layer % 2) for layer, name in enumerate(names)}
    of = groups((UniformTypeKVCacheSpecs.from_specs(of_layers), 4))
    source, target = Memory(of, "LBNHC"), Memory(of, "LBNHC")
    assert refusal(ONE_RANK, SimpleNamespace(kv_cache_groups=of)) == ""
    assert groups_of(SimpleNamespace(kv_cache_groups=of)) == [KvGroup()]
    for layer in source.layers(0):
        layer[3] = torch.randn(layer[3].shape)
    for tensor, to in zip(source.read("").tensors, target.read("").tensors, strict=True):
        to[3] = tensor[3]
    for layer, copied in zip(source.layers(0), target.layers(0), strict=True):
        assert torch.equal(layer, copied)


def test_one_groups_tensors_are_not_the_blocks_of_another_whose_pages_differ() -> None:
    """The test above would see it: what one group alone has in a block is less than a block."""
    memory = Memory(groups(*OTHER_PAGES), "BLNHC")
    alone = {name: cache for name, cache in memory.caches.items() if name in memory.groups[0].layer_names}
    assert read_layout(alone, BLOCKS, lambda _: 0).block_bytes < memory.read().block_bytes


def test_groups_that_lie_over_each_other_in_pieces_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="VLLM_KV_CACHE_LAYOUT=LBNHC"):
        Memory(groups(*PADDED), "BHLNC").read()


def test_engines_that_differ_in_their_groups_have_other_layouts() -> None:
    def read(groups: str) -> str:
        return read_layout({"a": torch.zeros(4, 8)}, 4, lambda _: 0, groups).text

    assert read("full:0;sliding64:1") != read("full:1;sliding64:0")
