// Makes regions of memory that AllocateExportable returned (cuda_vmm_fd).
#pragma once

#include <optional>

#include "cuda/memory/device_memory.h"

namespace kvm {

// Exports `ranges`; empty if none of them is such memory. The result keeps the memory alive, also
// after FreeExportable.
// kInvalidArgument: some are and some are not, a range leaves its allocation, or lies on another
// GPU.
// kBadGeometry: more segments than descriptors fit into one message. kSystem.
[[nodiscard]] Result<std::optional<std::unique_ptr<CudaLocalMemory>>> RegisterExportable(const std::shared_ptr<const CudaDevice>& device,
                                                                                         std::span<const DeviceRange> ranges);

}  // namespace kvm
