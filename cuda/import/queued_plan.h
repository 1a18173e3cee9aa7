// Putting a TransferPlan into a stream, up to the launch of its kernel.
//
// Only files of this folder that include CUDA headers, and GPU tests, include this one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/plan/copy_table.h"
#include "cuda/plan/transfer_plan.h"
#include "kvm/error.h"

namespace kvm {

// Arguments of the kernel as far as the plan says them; who is told of the end is the caller's to fill in.
[[nodiscard]] CopyArgs ArgsOf(const TransferPlan& plan) noexcept;

// Uploads the table if it does not travel in the launch, and starts the copies of the copy engine. The table's place on the
// device; null: it travels in the launch. `staged` (pinned host memory) and `own_table` (device memory) have room for the
// table and stay as they are until the stream has got past this. The plan may go when this returns.
[[nodiscard]] Result<const void*> QueueTableAndCopies(const TransferPlan& plan, std::byte* staged, std::byte* own_table,
                                                      cudaStream_t stream);

}  // namespace kvm
