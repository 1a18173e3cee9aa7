// Makes the data plane of a GPU. No CUDA types; in every build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/memory_backend.h"
#include "kvm/device.h"

namespace kvm {

// The data plane of one GPU: allocates cuda_vmm_fd, registers cuda_ipc (and memory of AllocateExportable), maps both and host memory.
// kUnsupported, kNotFound (no visible GPU has that UUID), kSystem.
[[nodiscard]] Result<std::shared_ptr<MemoryBackend>> MakeCudaBackend(const DeviceUuid& uuid);

// Checksums (cuda/host/checksum.h) of all blocks of a geometry over one segment of that GPU's memory. Waits for the result, not
// for other work of the GPU. As MakeCudaBackend.
[[nodiscard]] Result<std::vector<std::uint64_t>> ChecksumGpuMemory(const DeviceUuid& uuid, const std::byte* base, const Geometry& geometry);

}  // namespace kvm
