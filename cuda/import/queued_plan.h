// Queues a TransferPlan on a stream, up to the launch of its kernel.
//
// Only files of this folder that include CUDA headers, and GPU tests, include this one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/plan/copy_table.h"
#include "cuda/plan/transfer_plan.h"
#include "kvm/error.h"

namespace kvm {

// The kernel's arguments that follow from the plan; the caller sets those for the report.
[[nodiscard]] CopyArgs ArgsOf(const TransferPlan& plan) noexcept;

// Whether the table is too large for a launch argument, and is uploaded.
[[nodiscard]] bool NeedsUpload(const TransferPlan& plan) noexcept;

// Queues the upload of the table. `staged` (pinned host memory) and `own_table` (device memory)
// have room for it, and must not change until the stream has passed this point. The plan may be
// destroyed when this returns.
[[nodiscard]] Status QueueTable(const TransferPlan& plan, std::byte* staged, std::byte* own_table, cudaStream_t stream);

// Queues the copies of the copy engine. The plan may be destroyed when this returns.
[[nodiscard]] Status QueueEngineCopies(const TransferPlan& plan, cudaStream_t stream);

}  // namespace kvm
