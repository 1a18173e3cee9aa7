// ChecksumContext: what one computation of checksums needs on a GPU: a stream, and memory on both
// sides for the lists and the sums.
//
// Contexts are kept for the life of the process and used again: to make a stream and allocate takes
// longer than to sum a few blocks. A context belongs to one thread at a time; taking and returning
// is thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "cuda/device/cuda_device.h"

namespace kvm {

class ChecksumContext {
 public:
  // One of the GPU's that no thread uses, else a new one.
  [[nodiscard]] static Result<std::unique_ptr<ChecksumContext>> Take(const std::shared_ptr<const CudaDevice>& device);
  // Not after an error of CUDA: such a context is destroyed instead.
  static void Return(std::unique_ptr<ChecksumContext> context);

  explicit ChecksumContext(std::shared_ptr<const CudaDevice> device) : device_(std::move(device)) {}
  ~ChecksumContext();
  ChecksumContext(const ChecksumContext&) = delete;
  ChecksumContext& operator=(const ChecksumContext&) = delete;

  // Makes room for so many bytes on each side. Precondition: nothing is queued on stream().
  [[nodiscard]] Status Reserve(std::size_t bytes);

  cudaStream_t stream() const noexcept { return stream_; }
  std::byte* host() const noexcept { return host_; }   // pinned
  std::byte* device() const noexcept { return gpu_; }  // device memory, of the same size

 private:
  const std::shared_ptr<const CudaDevice> device_;
  cudaStream_t stream_ = nullptr;
  std::byte *host_ = nullptr, *gpu_ = nullptr;
  std::size_t bytes_ = 0;
  // Buffers that became too small. Freeing them would wait for all work on the GPU. Sizes double,
  // so they are together no larger than those in use.
  std::vector<std::byte*> retired_host_, retired_gpu_;
};

// The GPU, opened at the first call and kept open: to open it takes longer than most checksums.
[[nodiscard]] Result<std::shared_ptr<const CudaDevice>> OpenForChecksums(const DeviceUuid& uuid);

}  // namespace kvm
