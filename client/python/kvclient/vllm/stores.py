"""A worker's KV blocks as a region: in place where the memory can be shared, else through a copy in host memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from kvclient._native import (
    BlockKey,
    BlockKeys,
    BlockWrite,
    BlockWrites,
    Client,
    Geometry,
    ImportTicket,
    Model,
    PublishRequests,
    Region,
    Shard,
)
from kvclient.host_store import HostStore
from kvclient.torch import register_tensors, row_major, view
from kvclient.vllm.layout import KvLayout
from kvclient.vllm.options import ConnectorOptions
from kvclient.vllm.stats import Counters

_log = logging.getLogger(__name__)


class PendingLoad(Protocol):
    """An import that has begun."""

    def done(self) -> bool:
        """Whether the import has ended; never waits."""

    def wait(self) -> int:
        """Leading blocks that hold validated content; the others hold arbitrary bytes."""


class Run(NamedTuple):
    """Consecutive blocks of one chain, of one shard."""

    blocks: Sequence[int]
    keys: BlockKeys
    parent: BlockKey
    depth: int


class BlockMemory(Protocol):
    """The engine's blocks as a worker shares them. Not thread-safe."""

    region: Region

    def begin(self, blocks: Sequence[int]) -> None:
        """Make the blocks unreadable: they are about to get new content."""

    def publish(self, runs: Sequence[Run]) -> None:
        """Publish the blocks, whose content is complete once all work queued so far has run."""

    def load(self, keys: BlockKeys, parent: BlockKey, depth: int, blocks: Sequence[int], wait: bool) -> PendingLoad:
        """Import ``keys`` to ``blocks``. ``wait``: work that is queued from now on needs the content."""

    def withdraw_all(self) -> None:
        """Make all blocks unreadable."""


class _Done:
    def __init__(self, valid: int) -> None:
        self._valid = valid

    def done(self) -> bool:
        return True

    def wait(self) -> int:
        return self._valid


class InPlaceMemory:
    """The engine's own memory, shared in place: publishing needs no copy, imports are copied straight to its blocks."""

    def __init__(
        self,
        client: Client,
        region: Region,
        options: ConnectorOptions,
        counters: Counters,
        device: torch.device | None = None,
    ) -> None:
        """``region``: the engine's blocks, of ``client``. ``device``: the GPU they are on; None: host memory."""
        self.region = region
        self._client = client
        self._options = options
        self._counters = counters
        self._device = device
        self._writes: dict[int, BlockWrite] = {}
        self._copy_stream = torch.cuda.Stream(device) if device is not None else None

    def begin(self, blocks: Sequence[int]) -> None:
        self._writes.update(zip(blocks, self.region.begin_writes(blocks), strict=True))

    def publish(self, runs: Sequence[Run]) -> None:
        requests = PublishRequests()
        for blocks, keys, parent, depth in runs:
            # Blocks whose write this worker has not begun were written before it attached: it must
            # not publish them.
            count = next((i for i, block in enumerate(blocks) if block not in self._writes), len(blocks))
            writes = BlockWrites([self._writes.pop(block) for block in blocks[:count]])
            requests.extend(PublishRequests.run(keys[:count], parent, depth, writes))
        if not requests:
            return
        if self._device is None:
            self.region.publish(requests)
        else:
            self.region.publish_on_stream(requests, torch.cuda.current_stream(self._device).cuda_stream)
        self._counters.add("published_blocks", len(requests))

    def load(self, keys: BlockKeys, parent: BlockKey, depth: int, blocks: Sequence[int], wait: bool) -> PendingLoad:
        match = self._client.find(keys, destination=self.region, include_own=False)
        on_gpu: dict[str, Any] = {}
        if self._copy_stream is not None:
            compute = torch.cuda.current_stream(self._device)
            stream = compute
            if not wait:
                # After the work queued so far, which may still use the blocks; concurrent with
                # later work.
                self._copy_stream.wait_stream(compute)
                stream = self._copy_stream
            on_gpu = {"stream": stream.cuda_stream, "max_sms": self._options.max_sms}
        ticket = self._client.import_blocks(
            match,
            self.region,
            blocks[: len(match)],
            timeout_s=self._options.import_timeout_s,
            verify=self._options.verify,
            **on_gpu,
        )
        return _InPlaceLoad(self, ticket)

    def withdraw_all(self) -> None:
        self.begin(range(self.region.block_count))

    def imported(self, writes: BlockWrites) -> None:
        """Blocks that an import wrote may be published by this worker."""
        self._writes.update((write.block, write) for write in writes)


class _InPlaceLoad:
    def __init__(self, memory: InPlaceMemory, ticket: ImportTicket) -> None:
        self._memory = memory
        self._ticket = ticket
        self._valid: int | None = None

    def done(self) -> bool:
        return self._valid is not None or self._ticket.done()

    def wait(self) -> int:
        if self._valid is None:
            result = self._ticket.wait()
            self._memory.imported(result.writes)
            self._valid = result.valid
        return self._valid


class HostMemory:
    """For engines on a CPU, whose tensors are private memory: shared blocks are copied to and from a host region."""

    def __init__(
        self, client: Client, region: Region, layout: KvLayout, options: ConnectorOptions, counters: Counters
    ) -> None:
        """``region``: host memory of ``client``, contiguous blocks of ``layout.block_bytes``."""
        self.region = region
        self._counters = counters
        self._layout = layout
        self._store = HostStore(client, self.region, publish=options.publish, import_timeout_s=options.import_timeout_s)
        self._parts: list[torch.Tensor] = []
        offset = 0
        for tensor in layout.tensors:
            shape = [region.block_count, *tensor.shape[1:]]
            stride = [layout.block_bytes // tensor.element_size(), *row_major(tensor.shape[1:])]
            self._parts.append(view(self.region, shape, tensor.dtype, stride=stride, offset_bytes=offset))
            offset += tensor[0].numel() * tensor.element_size()

    def begin(self, blocks: Sequence[int]) -> None:
        """Does nothing: peers read the copies in the host region, not the engine's blocks."""

    def publish(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self._publish(*run)

    def _publish(self, blocks: Sequence[int], keys: BlockKeys, parent: BlockKey, depth: int) -> None:
        def fill(indices: Sequence[int], targets: Sequence[int]) -> None:
            source = torch.tensor([blocks[index] for index in indices])
            target = torch.tensor(list(targets))
            for tensor, part in zip(self._layout.tensors, self._parts, strict=True):
                part[target] = tensor[source]

        missing = self._store.missing(keys)
        if missing:
            self._counters.add("published_blocks", self._store.store(keys, parent, depth, missing, fill))

    def load(self, keys: BlockKeys, parent: BlockKey, depth: int, blocks: Sequence[int], wait: bool) -> PendingLoad:
        keys = keys[: self._store.block_count]
        source = self._store.fetch(keys, parent, depth)
        if source:
            here, there = torch.tensor(list(blocks[: len(source)])), torch.tensor(source)
            for tensor, part in zip(self._layout.tensors, self._parts, strict=True):
                tensor[here] = part[there]
        return _Done(len(source))

    def withdraw_all(self) -> None:
        self._store.clear()


def share(
    client: Client,
    model: Model,
    shard: Shard,
    layout: KvLayout,
    options: ConnectorOptions,
    name: str,
    counters: Counters,
) -> BlockMemory:
    """Register the engine's memory where it is, or host memory for engines on a CPU.

    KvErrors of ``register_tensors`` and ``Client.allocate_region``; UnsupportedError says which memory can be shared.
    """
    if layout.device.type == "cuda":
        region = register_tensors(client, model, layout.tensors, 0, name=name, shard=shard, checksums=options.verify)
        return InPlaceMemory(client, region, options, counters, layout.device)
    count = max(1, min(options.host_cache_bytes // layout.block_bytes, 1 << 24))
    geometry = Geometry.contiguous(count, layout.block_bytes)
    # A restarted engine allocates new memory; if a dead engine's memory outlived it, the node would
    # hold both.
    region = client.allocate_region(
        model, geometry, name=name, shard=shard, checksums=options.verify, outlives_owner=False
    )
    return HostMemory(client, region, layout, options, counters)


class TimedLoad:
    """A load with its request and its starting time."""

    def __init__(self, request_id: str, blocks: Sequence[int], wait: bool, whole: bool = False) -> None:
        """Starts the clock. The caller sets ``load``; it stays None if the load could not be started."""
        self.load: PendingLoad | None = None
        self.request_id = request_id
        self.blocks = list(blocks)
        self.waits = wait
        self.whole = whole
        self.began = time.perf_counter()

    def done(self) -> bool:
        """Whether the load has ended; never waits."""
        return self.load is None or self.load.done()

    def valid(self) -> int:
        """Wait for the load; the number of leading blocks that are valid."""
        try:
            return self.load.wait() if self.load is not None else 0
        except Exception as error:
            _log.warning("kvclient: import: %s", error)
            return 0


__all__ = ["BlockMemory", "HostMemory", "InPlaceMemory", "PendingLoad", "Run", "TimedLoad", "share"]
