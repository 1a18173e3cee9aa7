// Names of GPUs that are valid in all processes, and CUDA's streams and device memory without
// CUDA's types.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/error.h"

namespace kvm {

// Names a GPU (or MIG instance) between processes, whose ordinals may differ. Zeros: host memory.
using DeviceUuid = std::array<std::uint8_t, 16>;
inline constexpr DeviceUuid kHostMemory{};

// "GPU-8f7a…", as nvidia-smi writes it.
std::string FormatUuid(const DeviceUuid& uuid);
// Parses that text; also "MIG-…" and the bare number. kInvalidArgument: it is none of these.
[[nodiscard]] Result<DeviceUuid> ParseUuid(std::string_view text);

// A cudaStream_t of the caller. Its value may be 0, the legacy default stream.
struct StreamHandle {
  std::uintptr_t value = 0;
};

// Device memory that the caller allocated itself.
struct DeviceRange {
  void* data = nullptr;
  std::uint64_t size_bytes = 0;
};

// How an importer reaches a region's memory, the fastest first; sources are chosen in this order.
enum class MemoryPath : std::uint8_t {
  kSameDevice = 0,  // the importer's own GPU, or host memory for a host importer
  kNvlink = 1,
  kPciePeer = 2,
  kHost = 3,  // host memory read by a GPU
};
const char* MemoryPathName(MemoryPath path) noexcept;  // "same GPU", "NVLink", "PCIe peer", "host"

// A GPU that this process can use.
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

// Version of the CUDA toolkit that this library was built with, "13.0"; empty: built without CUDA.
std::string CudaToolkitVersion();

// All visible GPUs; creates no context. kUnsupported: built without CUDA, no driver, or no GPU.
[[nodiscard]] Result<std::vector<DeviceInfo>> ListDevices();

// The GPU that CUDA numbers `ordinal` in this process. kNotFound: there is none. kUnsupported as
// ListDevices.
[[nodiscard]] Result<DeviceUuid> DeviceAt(int ordinal);

// The GPU that a device pointer of this process points to. kInvalidArgument: it is none.
// kUnsupported.
[[nodiscard]] Result<DeviceUuid> DeviceOf(const void* pointer);

}  // namespace kvm
