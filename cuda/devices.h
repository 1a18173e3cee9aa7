// Makes the memory backend of a GPU. This header uses no CUDA types and is part of every build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/memory_backend.h"
#include "kvm/device.h"

namespace kvm {

// The memory backend of one GPU. It allocates cuda_vmm_fd memory, registers cuda_ipc memory (and
// memory of AllocateExportable), and maps both of them and host memory.
// kUnsupported, kNotFound (no visible GPU has that UUID), kSystem.
[[nodiscard]] Result<std::shared_ptr<MemoryBackend>> MakeCudaBackend(const DeviceUuid& uuid);

// Checksums (cuda/host/checksum.h) of all blocks of a geometry over one segment of that GPU's
// memory. Waits for the result, not for other work of the GPU. Errors: those of MakeCudaBackend.
[[nodiscard]] Result<std::vector<std::uint64_t>> ChecksumGpuMemory(const DeviceUuid& uuid, const std::byte* base, const Geometry& geometry);

}  // namespace kvm
