// Buffers on two GPUs, access from one to the other, and the time of a copy between them.
#pragma once

#include <memory>
#include <vector>

#include "cuda/device/cuda_device.h"

namespace kvm {

class CopyTimer {
 public:
  // `bytes` on each GPU; the two may be one. kResourceExhausted, kUnsupported, kSystem.
  [[nodiscard]] static Result<std::unique_ptr<CopyTimer>> Create(std::shared_ptr<const CudaDevice> importer,
                                                                 std::shared_ptr<const CudaDevice> owner, std::uint64_t bytes);
  ~CopyTimer();
  CopyTimer(const CopyTimer&) = delete;
  CopyTimer& operator=(const CopyTimer&) = delete;

  // Seconds on the GPU of each of `rounds` copies of all bytes, after one that warms up.
  [[nodiscard]] Result<std::vector<double>> Time(unsigned rounds);

 private:
  CopyTimer(std::shared_ptr<const CudaDevice> importer, std::shared_ptr<const CudaDevice> owner, std::uint64_t bytes)
      : importer_(std::move(importer)), owner_(std::move(owner)), bytes_(bytes) {}
  cudaError_t Prepare();
  cudaError_t OneRound(double& seconds);

  const std::shared_ptr<const CudaDevice> importer_, owner_;
  const std::uint64_t bytes_;
  bool access_enabled_ = false;  // by this object, rather than by the process before
  void *destination_ = nullptr, *source_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace kvm
