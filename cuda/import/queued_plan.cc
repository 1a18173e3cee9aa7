#include "cuda/import/queued_plan.h"

#include <cstring>

#include "cuda/device/cuda_driver.h"
#include "cuda/kernels/copy_kernels.h"

namespace kvm {

CopyArgs ArgsOf(const TransferPlan& plan) noexcept {
  CopyArgs args;
  args.group_count = plan.group_count;
  args.piece_count = plan.piece_count;
  args.pair_count = plan.pair_count;
  args.item_count = plan.item_count;
  args.unit_bytes = plan.kernel.unit_bytes;
  return args;
}

bool NeedsUpload(const TransferPlan& plan) noexcept { return plan.table.size() > kMaxInlineTable; }

Status QueueTable(const TransferPlan& plan, std::byte* staged, std::byte* own_table, cudaStream_t stream) {
  std::memcpy(staged, plan.table.data(), plan.table.size());
  return CudaStatus(cudaMemcpyAsync(own_table, staged, plan.table.size(), cudaMemcpyHostToDevice, stream), "import: uploading the table");
}

Status QueueEngineCopies(const TransferPlan& plan, cudaStream_t stream) {
  for (const EngineCopy& copy : plan.engine_copies) {
    const cudaError_t error = cudaMemcpyAsync(reinterpret_cast<void*>(copy.destination), reinterpret_cast<const void*>(copy.source),
                                              copy.bytes, cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return CudaError(error, "import: cudaMemcpyAsync");
  }
  return {};
}

}  // namespace kvm
