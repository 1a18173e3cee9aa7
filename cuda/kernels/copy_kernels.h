// The kernels of an import: one copies the items that the table lists and may validate them,
// another only validates.
//
// Only files of cuda/ that include CUDA headers may include this one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "cuda/plan/copy_policy.h"
#include "cuda/plan/copy_table.h"

namespace kvm {

// Tables up to this size are passed as an argument of the launch; larger ones must lie in device
// memory.
inline constexpr std::size_t kMaxInlineTable = 28 << 10;

// Loads the kernels into the current context and allows them the shared memory that they use, so
// that the first import takes no longer than others. Sets `bulk_shared_bytes` to the shared memory
// that bulk kernels may have; 0 if the GPU has no bulk copies.
[[nodiscard]] cudaError_t PrepareCopyKernels(std::uint32_t& bulk_shared_bytes);

// Copies all items, then reports as args.report says. `table`: at most kMaxInlineTable bytes, read
// during the call; used if device_table is null.
[[nodiscard]] cudaError_t LaunchCopy(const KernelChoice& choice, const CopyArgs& args, std::span<const std::byte> table,
                                     const void* device_table, cudaStream_t stream);

// Validates all pairs of the table, with `blocks` CUDA blocks.
[[nodiscard]] cudaError_t LaunchValidate(unsigned blocks, const CopyArgs& args, std::span<const std::byte> table, const void* device_table,
                                         cudaStream_t stream);

}  // namespace kvm
