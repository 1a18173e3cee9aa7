// Checksums of blocks in GPU memory, by the function in cuda/host/checksum.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cuda/device/cuda_device.h"
#include "kvm/geometry.h"

namespace kvm {

// Waits for the result. kInvalidArgument: a block or segment that doesn't exist.
[[nodiscard]] Result<std::vector<std::uint64_t>> ChecksumBlocks(const std::shared_ptr<const CudaDevice>& device,
                                                                std::span<std::byte* const> bases, const Geometry& geometry,
                                                                std::span<const std::uint32_t> blocks);

}  // namespace kvm
