"""Regions of one process: memory, writes, and what is published of it; GPUs as far as a machine without one goes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import kvclient
from kvclient import (
    BlockKey,
    BlockKeys,
    BlockWrite,
    BlockWrites,
    Geometry,
    ImportFailure,
    KeyChain,
    PublishRequests,
    Shard,
    errors,
)
from kvclient.daemon import PrivateDaemon
from support.block_worker import spec
from support.waiting import eventually


def test_a_region_is_memory(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="memory") as client:
        model = client.declare_model(spec())
        with client.allocate_region(model, Geometry.contiguous(4, 4096), name="memory") as region:
            assert region.segment_bytes == [4 * 4096]
            whole = region.segment()
            assert whole.shape == (4 * 4096,)
            assert not whole.any(), "zeroed"
            region.block(2)[:] = 7
            assert whole.reshape(4, 4096).sum(axis=1).tolist() == [0, 0, 7 * 4096, 0]
            for call in (region.block, region.begin_write, region.current_generation):
                with pytest.raises(errors.InvalidArgumentError, match="block 4 of region memory"):
                    call(4)
            with pytest.raises(errors.InvalidArgumentError, match="segment 1"):
                region.segment(1)
            with pytest.raises(errors.AlreadyExistsError):
                client.allocate_region(model, Geometry.contiguous(4, 4096), name="memory")
        with pytest.raises(errors.CancelledError):
            region.block(0)
        assert whole[2 * 4096] == 7, "an array outlives its region"


def test_published_blocks_are_counted_without_a_match(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="publisher") as client:
        model = client.declare_model(spec())
        region = client.allocate_region(model, Geometry.contiguous(8, 4096), name="pool")
        chain = KeyChain(model)
        root, keys = chain.parent, chain.extend(list(range(24)))
        region.publish_run(keys[:5], root, 0, region.begin_writes(list(range(5))))
        region.flush()
        with kvclient.Client(kvmd.socket, name="reader") as reader:
            reader.declare_model(spec())
            for each in (client, reader):
                eventually(lambda each=each: each.count_published([keys], 0, 6) == 5)  # type: ignore[misc]
                assert each.count_published([keys], 0, 3) == 3
                assert each.count_published([keys], 4, 6) == 1
                assert each.count_published([keys], 5, 6) == 0
                assert each.count_published([keys], 2, 2) == 0
                # A shard that lacks a block ends the run of all
                assert each.count_published([keys, keys[1:]], 0, 5) == 4
                assert each.count_published([keys[5:], keys], 0, 1) == 0
            assert reader.count_published([keys], 0, 6, include_own=False) == 5
            assert client.count_published([keys], 0, 6, include_own=False) == 0
            # So many keys that the interpreter lock is released
            many = KeyChain(model).extend(list(range(40_000)))
            assert reader.count_published([many], 0, len(many)) == 5
            for wrong in (([keys], 0, 7), ([keys], 4, 3), ([], 0, 0), ([keys, keys[:5]], 0, 6)):
                with pytest.raises(errors.InvalidArgumentError):
                    reader.count_published(*wrong)


def test_blocks_are_counted_by_the_engines_own_hashes(kvmd: PrivateDaemon) -> None:
    hashes = [number.to_bytes(2, "little") * 16 for number in range(300)]
    names, keys = kvclient.BlockKeys(), kvclient.BlockKeys()
    names.extend_hashes(hashes, 300)
    shard = kvclient.ShardKeys(spec(), kvclient.Shard())
    shard.extend(keys, names)
    with kvclient.Client(kvmd.socket, name="publisher") as client:
        region = client.allocate_region(client.declare_model(spec()), Geometry.contiguous(300, 4096), name="pool")
        region.publish_run(keys[:290], shard.root, 0, region.begin_writes(list(range(290))))
        region.flush()
        with kvclient.Client(kvmd.socket, name="reader") as reader:
            reader.declare_model(spec())
            eventually(lambda: reader.count_hashed(hashes, shard, kvclient.BlockKeys(), 0, 300) == 290)
            derived = kvclient.BlockKeys()
            assert reader.count_hashed(hashes, shard, derived, 0, 7) == 7
            assert list(derived) == list(keys[:7])
            # It goes on from the keys that are there
            assert reader.count_hashed(hashes, shard, derived, 5, 300, False) == 285
            assert list(derived) == list(keys)
            assert reader.count_hashed(hashes, shard, derived, 288, 289) == 1
            assert client.count_hashed(hashes, shard, derived, 0, 300, False) == 0
            for first, last, wrong in ((0, 301, hashes), (4, 3, hashes), (0, 2, [hashes[0], b"short"])):
                with pytest.raises(errors.InvalidArgumentError):
                    reader.count_hashed(wrong, shard, kvclient.BlockKeys(), first, last)
            with pytest.raises(TypeError):
                reader.count_hashed([hashes[0], "no bytes"], shard, kvclient.BlockKeys(), 0, 2)


def test_nonsense_is_refused_before_anything_happens(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="nonsense") as client:
        model = client.declare_model(spec())
        region = client.allocate_region(model, Geometry.contiguous(4, 4096), name="nonsense")
        keys = KeyChain(model).extend(list(range(8)))
        with pytest.raises(errors.InvalidArgumentError, match="2 keys and 1 writes"):
            region.publish_run(keys, keys[0], 0, region.begin_writes([0]))
        with pytest.raises(errors.InvalidArgumentError):
            client.import_blocks(client.find(keys), region, [1, 2])
        with pytest.raises(errors.BadGeometryError):
            client.allocate_region(model, Geometry(0, []), name="none")
        with pytest.raises(errors.InvalidArgumentError, match="timeout_s"):
            region.flush(-1.0)
        with pytest.raises(errors.InvalidArgumentError):
            Shard(tp_rank=2, tp_size=2)
        region.close()


def test_block_numbers_come_in_many_forms(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="forms") as client:
        model = client.declare_model(spec())
        region = client.allocate_region(model, Geometry.contiguous(8, 4096), name="forms")
        for form in ([3, 5], (3, 5), np.array([3, 5], np.uint32), np.array([3, 5]), torch.tensor([3, 5])):
            before = [region.current_generation(block) for block in (3, 5)]
            writes = region.begin_writes(form)
            assert writes.blocks.tolist() == [3, 5]
            assert writes.generations.dtype == np.uint64
            assert all(now > then for now, then in zip(writes.generations, before, strict=True))
            region.retract(form)
        assert len(region.begin_writes(np.array([], np.uint32))) == 0
        generations = [region.current_generation(block) for block in range(8)]
        with pytest.raises(errors.InvalidArgumentError, match="block 8 of region forms"):
            region.begin_writes(np.array([1, 8], np.uint32))
        with pytest.raises(errors.InvalidArgumentError, match="block 1 is not an unsigned 32-bit number"):
            region.retract([1, -1])
        assert [region.current_generation(block) for block in range(8)] == generations, "nothing was begun"
        with pytest.raises(TypeError):
            region.begin_writes(np.array([1.0]))
        region.close()


def test_what_is_published_comes_from_arrays_as_from_objects() -> None:
    keys = KeyChain(spec()).extend(list(range(16)))
    array = keys.to_array()
    assert (array.shape, array.dtype) == ((4, 2), np.uint64)
    assert list(BlockKeys.from_array(array)) == list(keys)
    assert array[1].tolist() == [keys[1].lo, keys[1].hi]
    writes = BlockWrites.from_arrays(np.arange(4, dtype=np.uint32), [1, 3, 5, (1 << 63) + 1])
    assert writes[3] == BlockWrite(3, (1 << 63) + 1)
    root = BlockKey(7, 8)
    parents = BlockKeys([root, *list(keys)[:3]])
    made = PublishRequests.from_arrays(keys, parents, np.arange(4) + 2, writes.blocks, writes.generations)

    def fields(requests: PublishRequests) -> list[tuple[object, ...]]:
        return [(each.key, each.parent, each.depth, each.write) for each in requests]

    assert fields(made) == fields(PublishRequests.run(keys, root, 2, writes))
    assert fields(pickle.loads(pickle.dumps(made))) == fields(made)
    assert list(pickle.loads(pickle.dumps(writes))) == list(writes)
    with pytest.raises(errors.InvalidArgumentError, match="3 blocks and 4 generations"):
        BlockWrites.from_arrays([0, 1, 2], writes.generations)
    with pytest.raises(errors.InvalidArgumentError, match="4 keys, 3 parents, 4 depths and 4 blocks"):
        PublishRequests.from_arrays(keys, list(parents)[:3], [0, 1, 2, 3], writes.blocks, writes.generations)
    with pytest.raises(errors.InvalidArgumentError, match="generation 0"):
        BlockWrites.from_arrays([0], [-1])


def test_requests_are_published_at_once_or_behind_a_stream(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="requests") as client:
        model = client.declare_model(spec())
        region = client.allocate_region(model, Geometry.contiguous(8, 4096), name="requests")
        chain = KeyChain(model)
        root, keys = chain.parent, chain.extend(list(range(32)))
        writes = region.begin_writes(range(8))
        requests = PublishRequests.run(keys, root, 0, writes)
        assert region.publish(requests[:3]).readable == 3
        region.publish_on_stream(requests[3:5], 0)  # host memory has no stream to follow
        assert region.publish(list(requests)[5:]).readable == 3
        assert region.publish(requests).lost_race == 8, "each only once"
        region.flush(5.0)
        assert len(client.find(keys)) == 8
        region.close()


def test_a_block_that_does_not_hold_what_was_published_is_corrupt(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="owner") as owner, kvclient.Client(kvmd.socket, name="reader") as reader:
        model = owner.declare_model(spec())
        source = owner.allocate_region(model, Geometry.contiguous(4, 4096), name="source", checksums=True)
        target = reader.allocate_region(
            reader.declare_model(spec()), Geometry.contiguous(4, 4096), name="target", checksums=False
        )
        chain = KeyChain(model)
        root, keys = chain.parent, chain.extend(list(range(16)))
        writes = source.begin_writes(range(4))
        source.segment()[:] = 5
        source.publish_run(keys, root, 0, writes)
        source.flush(5.0)
        match = reader.find(keys, destination=target, include_own=False)
        assert len(match) == 4
        assert reader.import_blocks(match, target, np.arange(4), verify=True).wait(5.0).valid == 4
        source.block(2)[17] ^= 1  # without begin_write, as a fault would
        assert reader.import_blocks(match, target, [0, 1, 2, 3]).wait(5.0).valid == 4
        result = reader.import_blocks(match, target, [0, 1, 2, 3], verify=True, max_sms=2, stream=0).wait(5.0)
        assert result.valid == 2
        assert [each.reason for each in result.failed] == [ImportFailure.CORRUPT, ImportFailure.BEHIND_FAILED]
        source.close()
        target.close()


def test_bytes_go_in_and_out_of_a_segment(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="bytes") as client:
        model = client.declare_model(spec())
        region = client.allocate_region(model, Geometry.contiguous(2, 4096), name="bytes")
        assert (region.device, region.memory_kind) == (None, kvclient.MemoryKind.HOST_MEMFD)
        region.write_bytes(0, 100, b"abc")
        region.write_bytes(0, 103, np.frombuffer(b"def", np.uint8))
        assert region.read_bytes(0, 99, 8) == b"\0abcdef\0"
        assert region.segment()[100:106].tobytes() == b"abcdef"
        for call in (lambda: region.read_bytes(0, 8190, 3), lambda: region.write_bytes(0, 8190, b"abc")):
            with pytest.raises(errors.InvalidArgumentError):
                call()
        with pytest.raises(errors.InvalidArgumentError, match="segment 1"):
            region.read_bytes(1, 0, 1)
        with pytest.raises(errors.UnsupportedError, match="host memory"):
            region.device_segment()
        region.close()


def test_devices_are_named_by_uuid(kvmd: PrivateDaemon) -> None:
    nowhere = "GPU-00000000-0000-0000-0000-00000000dead"
    raw = bytes(14) + b"\xde\xad"
    with kvclient.Client(kvmd.socket, name="devices", max_mapped_regions=10) as client:
        model = client.declare_model(spec())
        assert client.unmapped_regions() == []
        for device in (nowhere, raw, nowhere.replace("GPU-", "MIG-")):
            with pytest.raises((errors.UnsupportedError, errors.NotFoundError)):
                client.allocate_region(model, Geometry.contiguous(4, 4096), name="nowhere", device=device)
            with pytest.raises((errors.UnsupportedError, errors.NotFoundError)):
                kvclient.Client(kvmd.socket, devices=[device])
        for nonsense in ("cuda:0", raw[:-1]):
            with pytest.raises(errors.InvalidArgumentError, match="UUID"):
                client.allocate_region(model, Geometry.contiguous(4, 4096), name="nowhere", device=nonsense)
        with pytest.raises((errors.UnsupportedError, errors.InvalidArgumentError)):
            client.register_region(model, Geometry.contiguous(4, 4096), [(id(client), 4 * 4096)], name="host")
        with pytest.raises(errors.InvalidArgumentError, match="no segments"):
            client.register_region(model, Geometry.contiguous(4, 4096), [], name="none")
