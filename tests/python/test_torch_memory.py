"""torch's tensors as regions and torch's allocator over exportable memory, as far as a machine without a GPU goes."""

from __future__ import annotations

import ctypes
import subprocess

import pytest
import torch

import kvclient
import kvclient.torch
from kvclient import _native, errors
from kvclient.daemon import PrivateDaemon
from support.block_worker import spec

NO_GPU = not torch.cuda.is_available()


def test_tensors_in_host_memory_are_refused_with_advice(kvmd: PrivateDaemon) -> None:
    with kvclient.Client(kvmd.socket, name="host") as client:
        model = client.declare_model(spec())
        with pytest.raises(errors.InvalidArgumentError, match=r"kvclient\.torch\.view"):
            kvclient.torch.register_tensors(client, model, [torch.zeros(4, 64)], 0, name="host")
        with pytest.raises(errors.InvalidArgumentError, match="no tensors"):
            kvclient.torch.register_tensors(client, model, [], 0, name="host")


def test_what_is_no_cuda_device_is_refused() -> None:
    for call in (kvclient.torch.device_uuid, kvclient.torch.mem_pool):
        with pytest.raises(errors.InvalidArgumentError, match="cpu is not a CUDA device"):
            call("cpu")
        with pytest.raises((errors.NotFoundError, errors.UnsupportedError)):
            call(999)


@pytest.mark.skipif(not NO_GPU, reason="this machine has a GPU")
def test_without_a_gpu_a_pool_is_refused_and_says_why() -> None:
    with pytest.raises(errors.UnsupportedError, match=r"GPU|CUDA|driver"):
        kvclient.torch.mem_pool()


def test_torch_finds_its_two_functions_and_out_of_memory_is_null() -> None:
    assert kvclient.torch._allocator() is kvclient.torch._allocator()
    library = ctypes.CDLL(_native.__file__)
    allocate, free = library.kvm_torch_allocate, library.kvm_torch_free
    allocate.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    allocate.restype = ctypes.c_void_p
    free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    before = kvclient.exportable_in_use()
    for size, device in ((1 << 20, 999), (1 << 20, -1), (0, 0), (-5, 0), (1 << 60, 0)):
        assert allocate(size, device, None) is None
    for address in (None, 0x1000):
        free(address, 1 << 20, 0, None)
    assert kvclient.exportable_in_use() == before


def test_the_extension_shows_nothing_else() -> None:
    listing = subprocess.run(
        ["readelf", "--dyn-syms", "--wide", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    columns = [line.split() for line in listing.splitlines()]
    shown = {line[7] for line in columns if len(line) > 7 and line[4] == "GLOBAL" and line[6].isdigit()}
    assert shown == {"PyInit__native", "kvm_torch_allocate", "kvm_torch_free"}
