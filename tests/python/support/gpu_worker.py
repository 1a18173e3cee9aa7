"""A worker on a GPU: paged KV tensors as engines lay them out, registered as they are, whose blocks hold bytes that
follow from their key. Everything that a test asks for comes back as plain data that says what was wrong.
"""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import threading
import time
from typing import Any

import torch

import kvclient
import kvclient.torch
from support.block_worker import BLOCK_TOKENS, spec

LAYERS, HEADS, SIZE = 3, 2, 128
DTYPE = torch.bfloat16
BLOCK_BYTES = LAYERS * 2 * BLOCK_TOKENS * HEADS * SIZE * DTYPE.itemsize

# Shape of each tensor with B blocks, which dimension counts them, how many tensors. A block has the
# same size in all.
LAYOUTS: dict[str, tuple[list[int], int, int]] = {
    "separate K and V": ([-1, BLOCK_TOKENS, HEADS, SIZE], 0, 2 * LAYERS),
    "[2, blocks, ...]": ([2, -1, BLOCK_TOKENS, HEADS, SIZE], 1, LAYERS),
    "[blocks, 2, ...]": ([-1, 2, BLOCK_TOKENS, HEADS, SIZE], 0, LAYERS),
    "MLA": ([-1, BLOCK_TOKENS, 2 * HEADS * SIZE], 0, LAYERS),
    "cross-layer": ([-1, LAYERS, 2, BLOCK_TOKENS, HEADS, SIZE], 0, 1),
}


def content(key: kvclient.BlockKey) -> torch.Tensor:
    """Bytes of a block: uint8 [BLOCK_BYTES], a stream derived from its key."""
    return torch.frombuffer(bytearray(hashlib.shake_128(bytes.fromhex(key.hex)).digest(BLOCK_BYTES)), dtype=torch.uint8)


class GpuWorker:
    def __init__(self, socket: str, name: str, device: int, expandable: bool = False) -> None:
        if expandable:
            torch.cuda.memory._set_allocator_settings("expandable_segments:True")
        torch.cuda.set_device(device)
        self.name = name
        self.device = torch.device("cuda", device)
        self.client = kvclient.Client(socket, name=name, timeout_s=30.0, devices=[kvclient.torch.device_uuid(device)])
        self.model = self.client.declare_model(spec(), timeout_s=30.0)
        self.stream = torch.cuda.Stream(self.device)
        self.tensors: list[torch.Tensor] = []
        self.pool: torch.cuda.MemPool | None = None
        self.region: Any = None

    def open(self, layout: str, pool: bool, blocks: int = 64, checksums: bool = False) -> dict[str, Any]:
        """Tensors in a layout, in torch's own memory or in a pool's, as a region; says what it has become."""
        if self.tensors:
            self.close_region()
        shape, self.block_dim, count = LAYOUTS[layout]
        shape = [blocks if size == -1 else size for size in shape]
        if pool:
            self.pool = kvclient.torch.mem_pool(self.device)
            with torch.cuda.use_mem_pool(self.pool):
                self.tensors = [torch.zeros(shape, dtype=DTYPE, device=self.device) for _ in range(count)]
        else:
            self.tensors = [torch.zeros(shape, dtype=DTYPE, device=self.device) for _ in range(count)]
        torch.cuda.synchronize()
        self.region = kvclient.torch.register_tensors(
            self.client, self.model, self.tensors, self.block_dim, name=self.name, checksums=checksums, timeout_s=30.0
        )
        assert self.region.block_bytes == BLOCK_BYTES
        return self.describe()

    # ---- what is where
    # ------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        return {
            "device": self.region.device,
            "uuid": kvclient.torch.device_uuid(self.device),
            "of_pointer": kvclient.device_of(self.tensors[0].data_ptr()),
            "back": str(kvclient.torch.torch_device(self.region.device or "")),
            "ordinal": self.device.index,
            "kind": self.region.memory_kind.name,
            "segments": self.region.segment_bytes,
            "in_use": kvclient.exportable_in_use(),
            "unmapped": [repr(each) for each in self.client.unmapped_regions()],
            "torch": torch.__version__,
            "gpu": torch.cuda.get_device_name(self.device),
        }

    def chain(self, tokens: list[int]) -> tuple[kvclient.BlockKey, kvclient.BlockKeys]:
        chain = kvclient.KeyChain(self.model)
        return chain.parent, chain.extend(tokens)

    def write(self, block: int, data: torch.Tensor) -> None:
        """On the current stream: `data`, uint8 [BLOCK_BYTES], as the geometry orders a block's bytes."""
        data = data.to(self.device)
        for tensor, part in zip(self.tensors, data.chunk(len(self.tensors)), strict=True):
            target = tensor.select(self.block_dim, block)
            target.copy_(part.view(DTYPE).view(target.shape))

    def read(self, block: int) -> torch.Tensor:
        parts = [tensor.select(self.block_dim, block).contiguous().view(torch.uint8) for tensor in self.tensors]
        return torch.cat([part.flatten() for part in parts]).cpu()

    # ---- publishing
    # -----------------------------------------------------------------------------------

    def publish(self, tokens: list[int], blocks: list[int], sleep_cycles: int = 0) -> dict[str, Any]:
        """Writes and publishes on a stream, behind `sleep_cycles` of the GPU doing nothing."""
        root, keys = self.chain(tokens)
        contents = [content(key).to(self.device) for key in keys]
        torch.cuda.synchronize()
        writes = self.region.begin_writes(blocks)
        requests = kvclient.PublishRequests.run(keys, root, 0, writes)
        with torch.cuda.stream(self.stream):
            if sleep_cycles:
                torch.cuda._sleep(sleep_cycles)
            for block, data in zip(blocks, contents, strict=True):
                self.write(block, data)
            started = time.perf_counter()
            self.region.publish_on_stream(requests, self.stream.cuda_stream)
            took = time.perf_counter() - started
        # In this order: a stream that is still busy after the generation was read was busy before.
        generation = self.region.current_generation(blocks[0])
        early = {"readable": generation % 2 == 0, "stream_busy": not self.stream.query(), "call_s": took}
        self.region.flush(30.0)
        generations = [self.region.current_generation(block) for block in blocks]
        return {**early, "published": sum(each % 2 == 0 and each > 0 for each in generations)}

    def retract(self, blocks: list[int]) -> None:
        self.region.retract(blocks)

    def corrupt(self, block: int) -> None:
        """One bit of a published block, without begin_write, as a fault would."""
        part = self.tensors[-1].select(self.block_dim, block).view(torch.int16)
        part[(0,) * part.dim()] ^= 1
        torch.cuda.synchronize()

    # ---- importing
    # --------------------------------------------------------------------------------------

    def find(self, tokens: list[int]) -> tuple[int, str]:
        match = self.client.find(self.chain(tokens)[1], include_own=False, destination=self.region)
        return len(match), match.end.name

    def hold(self, tokens: list[int]) -> int:
        """Keeps the match for a later `fetch(..., held=True)`."""
        self.match = self.client.find(self.chain(tokens)[1], include_own=False, destination=self.region)
        return len(self.match)

    def fetch(
        self,
        tokens: list[int],
        blocks: list[int],
        *,
        held: bool = False,
        on_stream: bool = False,
        verify: bool = False,
        max_sms: int = 0,
        sleep_cycles: int = 0,
    ) -> dict[str, Any]:
        _, keys = self.chain(tokens)
        match = self.match if held else self.client.find(keys, include_own=False, destination=self.region)
        torch.cuda.synchronize()
        if sleep_cycles:
            with torch.cuda.stream(self.stream):
                torch.cuda._sleep(sleep_cycles)
        ticket = self.client.import_blocks(
            match,
            self.region,
            blocks[: len(match)],
            verify=verify,
            stream=self.stream.cuda_stream if on_stream else None,
            max_sms=max_sms,
            wants_event=on_stream,
        )
        done = ticket.done()
        early = {"done": done, "stream_busy": not self.stream.query(), "event": ticket.event}
        result = ticket.wait(30.0)
        wrong = []
        for index in range(result.valid):
            got, expected = self.read(blocks[index]), content(keys[index])
            if not torch.equal(got, expected):
                at = (got != expected).nonzero().flatten()
                # Bytes that differ, the first of them
                wrong.append((index, blocks[index], len(at), int(at[0])))
        return {
            **early,
            "matched": len(match),
            "end": match.end.name,
            "valid": result.valid,
            "wrong": wrong,
            "failed": [(each.index, each.reason.name) for each in result.failed],
            "unmapped": [repr(each) for each in self.client.unmapped_regions()],
        }

    def interrupted_wait(self, tokens: list[int], blocks: list[int], sleep_cycles: int) -> dict[str, Any]:
        """An import behind a busy stream, a SIGINT while it is waited for, and a second wait."""
        match = self.client.find(self.chain(tokens)[1], include_own=False, destination=self.region)
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(sleep_cycles)
        stream = self.stream.cuda_stream
        ticket = self.client.import_blocks(match, self.region, blocks[: len(match)], stream=stream)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            ticket.wait(3600.0)
            outcome = "returned"
        except KeyboardInterrupt:
            outcome = "interrupted"
        timer.join()
        busy = not self.stream.query()
        return {"outcome": outcome, "stream_busy": busy, "valid": ticket.wait(60.0).valid}

    # ---- the region's memory
    # --------------------------------------------------------------------------

    def forget_tensors(self, tokens: list[int], blocks: list[int]) -> int:
        """Drops the tensors, fills what torch has; how many of `blocks` the region still holds right."""
        _, keys = self.chain(tokens)
        shapes = [(tensor.shape, tensor.stride()) for tensor in self.tensors]
        self.tensors = []
        gc.collect()
        torch.cuda.empty_cache()
        junk = [torch.full((1 << 20,), 0x5A, dtype=torch.uint8, device=self.device) for _ in range(64)]
        for index, (shape, stride) in enumerate(shapes):
            self.tensors.append(kvclient.torch.view(self.region, shape, DTYPE, stride=stride, segment=index))
        right = sum(torch.equal(self.read(block), content(key)) for block, key in zip(blocks, keys, strict=True))
        del junk
        return right

    def close_region(self) -> tuple[int, int]:
        """What exportable memory is in use once region, tensors and pool are gone."""
        if self.region is not None:
            self.region.close()
        self.tensors = []
        self.pool = None
        gc.collect()
        torch.cuda.empty_cache()
        return kvclient.exportable_in_use()

    def own_memory(self, name: str) -> dict[str, Any]:
        """Views, bytes in and out, of a region that libkvclient allocates on this GPU."""
        region = self.client.allocate_region(
            self.model,
            kvclient.Geometry.contiguous(4, BLOCK_BYTES),
            name=name,
            device=kvclient.torch.device_uuid(self.device),
            timeout_s=30.0,
        )
        whole = kvclient.torch.segment_tensor(region)
        zeroed = not bool(whole.any())
        blocks = kvclient.torch.view(region, [4, BLOCK_BYTES // 2], DTYPE)
        blocks[2] = 1.5
        torch.cuda.synchronize()
        by_view = (
            region.read_bytes(0, 2 * BLOCK_BYTES, 4)
            == torch.full((2,), 1.5, dtype=DTYPE).view(torch.uint8).numpy().tobytes()
        )
        region.write_bytes(0, 7, bytes(range(50)))
        refused = []
        for call in (region.segment, lambda: region.block(0)):
            try:
                call()
            except kvclient.errors.UnsupportedError as error:
                refused.append(str(error))
        region.close()
        gc.collect()
        return {
            "zeroed": zeroed,
            "kind": whole.device.type,
            "index": whole.device.index,
            "bytes": whole.numel(),
            "by_view": by_view,
            # After close(): the tensor keeps the memory
            "by_bytes": whole[7:57].cpu().tolist() == list(range(50)),
            "refused": refused,
        }


def make(*arguments: object) -> GpuWorker:
    return GpuWorker(*arguments)  # type: ignore[arg-type]
