"""What a sender of blocks pays for a copy to staging memory, by its own processor time.

mesh_staging.py [--block-bytes N] [--rounds N]: one TCP stream over the loopback, from 256 MiB that are in no cache,
with XXH3 of each block, in turns: `staged` copies each block, checksums the copy and sends it; `direct` checksums and
sends the block itself; `sent first` sends it and then computes the checksum. Medians, in seconds of a core a GB.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import socket
import statistics
import time
from collections.abc import Callable

MEMORY = 256 << 20
STAGING = 8 << 20
WRITE = 1 << 20  # small blocks are sent together

xxhash = ctypes.CDLL("libxxhash.so.0")
xxhash.XXH3_64bits.restype = ctypes.c_uint64
xxhash.XXH3_64bits.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc = ctypes.CDLL(None)
libc.send.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.send.restype = ctypes.c_ssize_t
libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def touched(size: int) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.memset(address, 7, size)
    return memory, address


def receive(server: socket.socket) -> None:
    peer, _ = server.accept()
    into = bytearray(WRITE)
    while peer.recv_into(into):
        pass


class Sender:
    def __init__(self, address: tuple[str, int], block_bytes: int) -> None:
        self.block = block_bytes
        self.together = max(1, WRITE // block_bytes)
        self.memories = touched(MEMORY), touched(STAGING)
        self.source, self.staging = self.memories[0][1], self.memories[1][1]
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        self.socket.connect(address)

    def _send(self, at: int) -> None:
        left = self.block * self.together
        while left > 0:
            sent = libc.send(self.socket.fileno(), at, left, 0)
            at, left = at + sent, left - sent

    def _checksums(self, at: int) -> None:
        for i in range(self.together):
            xxhash.XXH3_64bits(at + i * self.block, self.block)

    def _each(self) -> range:
        return range(self.source, self.source + MEMORY, self.block * self.together)

    def staged(self) -> None:
        for at in self._each():
            to = self.staging + (at - self.source) % STAGING
            for i in range(self.together):
                libc.memcpy(to + i * self.block, at + i * self.block, self.block)
                xxhash.XXH3_64bits(to + i * self.block, self.block)
            self._send(to)

    def direct(self) -> None:
        for at in self._each():
            self._checksums(at)
            self._send(at)

    def sent_first(self) -> None:
        for at in self._each():
            self._send(at)
            self._checksums(at)


def timed(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return (time.process_time() - begin) / (MEMORY / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block-bytes", type=int, default=1 << 21, help="a power of two, at most 8 MiB")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver = os.fork()
        if receiver == 0:
            receive(server)
            os._exit(0)
        sender = Sender(server.getsockname(), options.block_bytes)
    ways = {"staged": sender.staged, "direct": sender.direct, "sent first": sender.sent_first}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    sender.staged()
    for _ in range(options.rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work))
    for name, values in seconds.items():
        print(f"{options.block_bytes} bytes, {name}: {statistics.median(values):.3f} s of a core a GB")
    sender.socket.close()
    os.waitpid(receiver, 0)


if __name__ == "__main__":
    main()
