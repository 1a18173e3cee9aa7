"""Geometry of tensors, from their strides; and blocks that travel between regions laid out differently."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import kvclient
from kvclient.daemon import PrivateDaemon
from kvclient.errors import BadGeometryError, InvalidArgumentError
from kvclient.torch import TensorGeometry, geometry_of, physical_order, segment_tensor, view
from support.specs import small_spec

BLOCKS, TOKENS, HEADS, SIZE, LAYERS = 6, 4, 3, 8, 2


def filled(shape: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).to(dtype).reshape(shape)


def split_first() -> tuple[list[torch.Tensor], int]:
    return [filled([2, BLOCKS, TOKENS, HEADS, SIZE]) + layer for layer in range(LAYERS)], 1


def blocks_first() -> tuple[list[torch.Tensor], int]:
    return [filled([BLOCKS, 2, TOKENS, HEADS, SIZE]) + layer for layer in range(LAYERS)], 0


def heads_outside_tokens() -> tuple[list[torch.Tensor], int]:
    """Logically [blocks, 2, tokens, heads, size], physically with heads before tokens."""
    return [filled([BLOCKS, 2, HEADS, TOKENS, SIZE]).transpose(2, 3) for _ in range(LAYERS)], 0


def mla() -> tuple[list[torch.Tensor], int]:
    return [filled([BLOCKS, TOKENS, 24], torch.bfloat16) for _ in range(LAYERS)], 0


def cross_layer() -> tuple[list[torch.Tensor], int]:
    return [filled([BLOCKS, LAYERS, 2, TOKENS, HEADS, SIZE])], 0


def layers_are_views() -> tuple[list[torch.Tensor], int]:
    """One buffer [blocks, layers, heads, tokens, 2·size]; each layer a strided view of it."""
    buffer = filled([BLOCKS, LAYERS, HEADS, TOKENS, 2 * SIZE])
    return [buffer[:, layer] for layer in range(LAYERS)], 0


def behind_an_offset() -> tuple[list[torch.Tensor], int]:
    return [filled([BLOCKS + 2, TOKENS, SIZE + 3])[1:-1, :, 2:-1]], 0


LAYOUTS = (split_first, blocks_first, heads_outside_tokens, mla, cross_layer, layers_are_views, behind_an_offset)


def block_bytes(where: TensorGeometry, tensors: list[torch.Tensor], block: int) -> bytes:
    """What the geometry says: chunks in order, read from the storages."""
    storages = {
        t.untyped_storage().data_ptr(): torch.tensor([], dtype=torch.uint8).set_(t.untyped_storage()) for t in tensors
    }
    result = b""
    for part in where.geometry.parts:
        raw = storages[where.segments[part.segment].address]
        for repeat in range(part.count):
            start = part.offset + repeat * part.repeat_stride + block * part.block_stride
            result += raw[start : start + part.chunk_bytes].numpy().tobytes()
    return result


def logical_bytes(tensors: list[torch.Tensor], dim: int, block: int, order: tuple[int, ...] | None = None) -> bytes:
    result = b""
    for tensor in tensors:
        rest = order if order is not None else [d for d in range(tensor.dim()) if d != dim]
        moved = tensor.permute(dim, *rest)[block].contiguous()
        result += moved.reshape(-1).view(torch.uint8).numpy().tobytes()
    return result


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda each: each.__name__)
def test_geometry_names_exactly_the_bytes_of_each_block(layout: Callable[[], tuple[list[torch.Tensor], int]]) -> None:
    tensors, dim = layout()
    where = geometry_of(tensors, dim)
    assert where.geometry.block_count == BLOCKS
    for block in range(BLOCKS):
        assert block_bytes(where, tensors, block) == logical_bytes(tensors, dim, block)


def test_physical_order_needs_the_fewest_chunks() -> None:
    tensors, dim = heads_outside_tokens()
    order = physical_order(tensors[0], dim)
    assert order == (1, 3, 2, 4)
    where = geometry_of(tensors, dim, order=order)
    assert where.geometry.chunks_per_block == LAYERS
    assert geometry_of(tensors, dim).geometry.chunks_per_block == LAYERS * 2 * TOKENS * HEADS
    for block in range(BLOCKS):
        assert block_bytes(where, tensors, block) == logical_bytes(tensors, dim, block, order)


def test_views_of_one_storage_are_one_segment() -> None:
    tensors, dim = layers_are_views()
    assert len(geometry_of(tensors, dim).segments) == 1
    tensors, dim = split_first()
    assert len(geometry_of(tensors, dim).segments) == LAYERS


def test_the_same_bytes_whatever_the_layout() -> None:
    """K and V split before or after the block dimension: the order of a block's bytes is the same."""
    (first, first_dim), (second, second_dim) = split_first(), blocks_first()
    for one, other in zip(first, second, strict=True):
        other.copy_(one.transpose(0, 1))
    one, other = geometry_of(first, first_dim), geometry_of(second, second_dim)
    assert one.geometry.chunks_per_block == 2 * other.geometry.chunks_per_block
    for block in range(BLOCKS):
        assert block_bytes(one, first, block) == block_bytes(other, second, block)


def test_what_has_no_geometry_is_refused() -> None:
    with pytest.raises(BadGeometryError, match="more than once"):
        geometry_of([torch.zeros(BLOCKS, TOKENS, 1).expand(BLOCKS, TOKENS, SIZE)], 0)
    twice = torch.zeros(BLOCKS, SIZE)
    with pytest.raises(BadGeometryError):
        geometry_of([twice, twice], 0)
    with pytest.raises(InvalidArgumentError, match="different block counts"):
        geometry_of([torch.zeros(4, 8), torch.zeros(5, 8)], 0)
    with pytest.raises(InvalidArgumentError, match="no dimension"):
        geometry_of([torch.zeros(4, 8)], 2)
    with pytest.raises(InvalidArgumentError, match="order"):
        geometry_of([torch.zeros(4, 8, 2)], 0, order=(1, 1))


def test_blocks_travel_between_regions_that_are_cut_differently(kvmd: PrivateDaemon) -> None:
    spec = small_spec(num_kv_heads=HEADS, head_size=SIZE, block_tokens=TOKENS)
    plain = {"split": ([2, BLOCKS, TOKENS, HEADS, SIZE], 1), "together": ([BLOCKS, 2, TOKENS, HEADS, SIZE], 0)}
    clients = {name: kvclient.Client(kvmd.socket, name=name) for name in plain}
    tensors, regions = {}, {}
    for name, (shape, dim) in plain.items():
        where = geometry_of([torch.empty(shape)], dim)
        model = clients[name].declare_model(spec)
        regions[name] = clients[name].allocate_region(
            model, where.geometry, name=name, segment_bytes=where.segment_bytes
        )
        tensors[name] = view(regions[name], shape, torch.float32)
    chain = kvclient.KeyChain(regions["split"].model)
    root, keys = chain.parent, chain.extend(list(range(BLOCKS * TOKENS)))
    writes = regions["split"].begin_writes(list(range(BLOCKS)))
    tensors["split"].copy_(torch.randn(tensors["split"].shape))
    regions["split"].publish_run(keys, root, 0, writes)
    regions["split"].flush()

    match = clients["together"].find(keys)
    target = [3, 1, 5, 0, 2, 4]
    assert clients["together"].import_blocks(match, regions["together"], target).wait(5.0).valid == BLOCKS
    for source, block in enumerate(target):
        assert torch.equal(tensors["together"][block], tensors["split"][:, source])


def test_a_view_keeps_the_memory_when_region_and_client_are_closed(kvmd: PrivateDaemon) -> None:
    client = kvclient.Client(kvmd.socket, name="view")
    spec = small_spec(head_size=16)
    region = client.allocate_region(client.declare_model(spec), kvclient.Geometry.contiguous(4, 512), name="view")
    tensor = view(region, [4, 128], torch.float32)
    tensor.fill_(1.5)
    region.close()
    client.close()
    assert float(tensor.sum()) == 1.5 * 512
    with pytest.raises(kvclient.errors.CancelledError):
        segment_tensor(region)
