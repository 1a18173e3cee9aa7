// GPU memory for the allocator of an engine. Client::RegisterRegion makes a cuda_vmm_fd region
// (shared as descriptors) of such memory rather than a cuda_ipc one: peers map it read-only, and an
// open descriptor keeps the memory alive.
//
// Process-wide. Thread-safe. kvclient.torch.mem_pool puts PyTorch's tensors there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvm/device.h"
#include "kvm/error.h"

namespace kvm {

// Zeroed memory of a GPU, mapped read-write for that GPU alone, from cuMemCreate: physical memory
// in multiples of 2 MiB. The first call for a GPU creates its context. Waits for the zeroing, not
// for other work of the GPU.
// kResourceExhausted: the GPU's memory is full. kInvalidArgument: 0 bytes. kNotFound: no visible
// GPU has that UUID.
// kUnsupported: built without CUDA, no driver, or a GPU or container that can't share such memory.
// kSystem.
[[nodiscard]] Result<void*> AllocateExportable(const DeviceUuid& device, std::uint64_t size_bytes);

// Frees the memory, once no region uses it any more. Waits, as cudaFree does, for all work that is
// queued on the GPU. kNotFound: `address` was not returned by AllocateExportable, or has been
// freed.
[[nodiscard]] Status FreeExportable(void* address);

// The exportable memory that is allocated and not freed.
struct ExportableUsage {
  std::size_t allocations = 0;
  std::uint64_t bytes = 0;  // as asked for
};
// Of this process, now.
ExportableUsage ExportableInUse();

}  // namespace kvm
