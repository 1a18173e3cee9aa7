// Makes the data plane of a GPU. No CUDA types; in every build.
#pragma once

#include <memory>

#include "cuda/memory_backend.h"
#include "kvm/device.h"

namespace kvm {

// The data plane of one GPU: allocates cuda_vmm_fd, registers cuda_ipc (and memory of AllocateExportable), maps both and host memory.
// kUnsupported, kNotFound (no visible GPU has that UUID), kSystem.
[[nodiscard]] Result<std::shared_ptr<MemoryBackend>> MakeCudaBackend(const DeviceUuid& uuid);

}  // namespace kvm
