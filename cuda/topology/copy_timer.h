// CopyTimer: allocates buffers on two GPUs, or on one and in pinned host memory, enables access
// from one to the other, and measures copies between them.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "cuda/device/cuda_device.h"

namespace kvm {

class CopyTimer {
 public:
  enum class Clock {
    kHost,  // from the call until the host knows that the copy is complete
    kGpu,   // between two events on the stream
  };
  using Queue = std::function<cudaError_t(cudaStream_t)>;

  // Allocates `bytes` on each GPU; both may be the same GPU. Without `owner` the source is pinned
  // host memory. kResourceExhausted, kUnsupported, kSystem.
  [[nodiscard]] static Result<std::unique_ptr<CopyTimer>> Create(std::shared_ptr<const CudaDevice> importer,
                                                                 std::shared_ptr<const CudaDevice> owner, std::uint64_t bytes);
  ~CopyTimer();
  CopyTimer(const CopyTimer&) = delete;
  CopyTimer& operator=(const CopyTimer&) = delete;

  std::byte* destination() const noexcept { return static_cast<std::byte*>(destination_); }
  const std::byte* source() const noexcept { return static_cast<const std::byte*>(source_); }
  std::uint64_t bytes() const noexcept { return bytes_; }
  // One cudaMemcpyPeerAsync of the first `bytes`; from host memory, one cudaMemcpyAsync.
  cudaError_t QueueContiguous(std::uint64_t bytes, cudaStream_t stream) const noexcept;

  // Seconds of each of `rounds`, after one that warms up.
  [[nodiscard]] Result<std::vector<double>> Time(unsigned rounds, Clock clock, const Queue& queue);

 private:
  CopyTimer(std::shared_ptr<const CudaDevice> importer, std::shared_ptr<const CudaDevice> owner, std::uint64_t bytes)
      : importer_(std::move(importer)), owner_(std::move(owner)), bytes_(bytes) {}
  cudaError_t Prepare();
  cudaError_t AllocateSource();
  cudaError_t OneRound(Clock clock, const Queue& queue, double& seconds);

  const std::shared_ptr<const CudaDevice> importer_, owner_;
  const std::uint64_t bytes_;
  bool access_enabled_ = false;  // by this object, rather than by the process before
  void *destination_ = nullptr, *source_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace kvm
