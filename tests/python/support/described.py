"""A worker whose blocks have known tokens, which it tells this node's kvmd-mesh."""

from __future__ import annotations

from collections.abc import Sequence

import kvclient
from kvclient import Geometry, KeyChain
from kvclient.daemon import PrivateDaemon
from support.block_worker import spec
from support.mesh import MeshProcess

BLOCK = 4  # tokens of a block of spec()
BLOCK_BYTES = 4096

EVENTS = ("--events", "tcp://127.0.0.1:*", "--events-replay", "tcp://127.0.0.1:*")


class DescribedWorker:
    """Publishes prompts in host memory."""

    def __init__(self, kvmd: PrivateDaemon, blocks: int = 64) -> None:
        self.client = kvclient.Client(kvmd.socket, name="described")
        self.spec = spec()
        self.model = self.client.declare_model(self.spec)
        self.region = self.client.allocate_region(self.model, Geometry.contiguous(blocks, BLOCK_BYTES), name="pool")

    def keys(self, tokens: Sequence[int]) -> kvclient.BlockKeys:
        return KeyChain(self.model).extend(list(tokens))

    def publish(self, tokens: Sequence[int], first_block: int = 0) -> kvclient.BlockKeys:
        keys = self.keys(tokens)
        blocks = list(range(first_block, first_block + len(keys)))
        self.region.publish_run(keys, KeyChain(self.model).parent, 0, self.region.begin_writes(blocks))
        return keys

    def describe(self, mesh: MeshProcess, tokens: Sequence[int]) -> kvclient.DescribeOutcome:
        return self.client.describe_blocks(
            self.spec, self.keys(tokens), list(tokens), timeout_s=20, mesh_socket=mesh.socket
        )

    def withdraw(self, blocks: Sequence[int]) -> None:
        self.region.begin_writes(list(blocks))

    def close(self) -> None:
        self.client.close()
