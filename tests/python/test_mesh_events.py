"""Events of kvmd-mesh, read with vLLM's own classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from kvclient.daemon import PrivateDaemon
from support.described import BLOCK, EVENTS, DescribedWorker
from support.mesh import MeshProcess

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed (scripts/python_env.sh --vllm)", allow_module_level=True)

PROMPT = [1000 + i for i in range(8 * BLOCK)]


class Stream:
    """A subscriber that decodes with vLLM's classes."""

    def __init__(self, endpoint: str) -> None:
        import msgspec
        import zmq
        from vllm.distributed.kv_events import KVEventBatch

        self._decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, "kv@")
        self._socket.connect(endpoint)

    def next(self) -> tuple[str, int, Any]:
        topic, sequence, payload = self._socket.recv_multipart()
        return topic.decode(), int.from_bytes(sequence, "big"), self._decoder.decode(payload)

    def next_with(self, kind: type) -> Any:
        """The next event of a type."""
        while True:
            for event in self.next()[2].events:
                if isinstance(event, kind):
                    return event

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


@pytest.fixture
def worker(kvmd: PrivateDaemon) -> Iterator[DescribedWorker]:
    with_tokens = DescribedWorker(kvmd)
    yield with_tokens
    with_tokens.close()


def test_vllms_classes_read_what_is_stored_and_removed(
    kvmd: PrivateDaemon, start_mesh: Callable[..., MeshProcess], worker: DescribedWorker
) -> None:
    from vllm.distributed.kv_events import BlockRemoved, BlockStored

    mesh = start_mesh(kvmd, "a", options=EVENTS)
    keys = worker.publish(PROMPT)
    stream = Stream(mesh.status()["events"]["endpoint"])
    # The subscription has arrived once there is something, be it a heartbeat.
    topic, first, batch = stream.next()
    assert topic == f"kv@a@{worker.spec.model_id}"
    assert abs(batch.ts - time.time()) < 3600
    assert batch.data_parallel_rank == 0
    worker.describe(mesh, PROMPT)
    stored = stream.next_with(BlockStored)
    assert stored.block_hashes == [key.lo for key in keys]
    assert stored.parent_block_hash is None
    assert stored.token_ids == PROMPT
    assert (stored.block_size, stored.medium) == (BLOCK, "CPU")
    assert (stored.lora_id, stored.lora_name, stored.extra_keys) == (None, None, None)
    worker.withdraw([6, 7])
    removed = stream.next_with(BlockRemoved)
    assert removed.block_hashes == [stored.block_hashes[7], stored.block_hashes[6]]
    assert removed.medium == "CPU"
    assert stream.next()[1] > first
    stream.close()
