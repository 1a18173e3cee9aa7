// The GPUs of this machine as this process sees them. No CUDA types; in every build.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/memory_backend.h"
#include "kvm/error.h"

namespace kvm {

struct DeviceInfo {
  DeviceUuid uuid{};
  int ordinal = 0;  // in this process only
  std::string name;
  std::string pci_address;  // "0000:0f:00.0"
  std::uint64_t memory_bytes = 0;
  unsigned sm_count = 0;
  unsigned compute_capability = 0;  // 90 for 9.0
  std::string unusable;             // why imports can't use it; empty: they can
};

// "GPU-8f7a…", as nvidia-smi writes it.
std::string FormatUuid(const DeviceUuid& uuid);

// All visible GPUs; creates no context. kUnsupported: built without CUDA, no driver, or no GPU.
[[nodiscard]] Result<std::vector<DeviceInfo>> ListDevices();

// The data plane of one GPU: allocates cuda_vmm_fd, registers cuda_ipc, maps both and host memory.
// kUnsupported, kNotFound (no visible GPU has that UUID), kSystem.
[[nodiscard]] Result<std::shared_ptr<MemoryBackend>> MakeCudaBackend(const DeviceUuid& uuid);

}  // namespace kvm
