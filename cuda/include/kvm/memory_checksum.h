// Content checksums of any memory of this process, on a GPU or in host memory, for example of an
// engine's weights.
//
// The checksums are the position-mixed 64-bit sums that also guard blocks (against faults and
// mistakes, not against an adversary), one for each piece of the memory. The same bytes have the
// same sums on a GPU and in host memory. Thread-safe.
#pragma once

#include <cstdint>
#include <vector>

#include "kvm/device.h"
#include "kvm/error.h"

namespace kvm {

// One sum for each `piece_bytes` of [address, address + size_bytes); the last piece may be shorter.
// GPU memory is read by its GPU on a separate stream, so all writes of the memory must have
// completed before. Blocks until done. `device`: the GPU that the memory is on; zeros: host memory.
// kInvalidArgument: no piece size, or more than 2^32 - 1 pieces. kNotFound: no visible GPU has that
// UUID.
// kUnsupported: built without CUDA, or no driver. kSystem.
[[nodiscard]] Result<std::vector<std::uint64_t>> ChecksumMemory(const void* address, std::uint64_t size_bytes, std::uint64_t piece_bytes,
                                                                const DeviceUuid& device);

}  // namespace kvm
