// A stream that stands still until it is released, at most for five seconds or as long as it is
// told: what waits for it fails then instead of hanging.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "kvm/device.h"
#include "tests/gpu/pattern.h"

namespace kvm::test {

// Of the GPU that is current when it is made.
class BlockedStream {
 public:
  explicit BlockedStream(std::chrono::seconds longest = std::chrono::seconds(5)) : longest_(longest) {
    MustSucceed(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    MustSucceed(cudaLaunchHostFunc(stream_, &Hold, this), "cudaLaunchHostFunc");
  }
  ~BlockedStream() {
    Release();
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  BlockedStream(const BlockedStream&) = delete;
  BlockedStream& operator=(const BlockedStream&) = delete;

  void Release() { released_ = true; }
  StreamHandle handle() const { return {reinterpret_cast<std::uintptr_t>(stream_)}; }
  cudaStream_t stream() const { return stream_; }

 private:
  static void CUDART_CB Hold(void* stream) {
    const auto& self = *static_cast<const BlockedStream*>(stream);
    const auto end = std::chrono::steady_clock::now() + self.longest_;
    while (!self.released_ && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  }
  const std::chrono::seconds longest_;
  cudaStream_t stream_ = nullptr;
  std::atomic<bool> released_{false};
};

}  // namespace kvm::test
