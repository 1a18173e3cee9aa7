// Content checksums of any memory of this process, on a GPU or in host memory: what an engine's weights are.
//
// Position-mixed 64-bit sums over pieces, the function that also guards blocks: against faults and mistakes, not
// against an adversary. The same bytes have the same sums on a GPU and in host memory. Thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "kvm/device.h"
#include "kvm/error.h"

namespace kvm {

// One sum for each `piece_bytes` of [address, address + size_bytes), the last piece as long as what is left. Of GPU
// memory read by its GPU, on a stream of its own: whatever writes the memory must have completed. Blocks until done.
// `device`: the GPU that the memory is on; zeros: host memory.
// kInvalidArgument: no piece size, or more than 2^32 - 1 pieces. kNotFound: no visible GPU has that UUID.
// kUnsupported: built without CUDA, or no driver. kSystem.
[[nodiscard]] Result<std::vector<std::uint64_t>> ChecksumMemory(const void* address, std::uint64_t size_bytes, std::uint64_t piece_bytes,
                                                                const DeviceUuid& device);

}  // namespace kvm
