// The data planes of a client: host memory, and the GPUs it imports to.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "cuda/memory_backend.h"
#include "kvclient/client.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe. Devices are added, never removed; an index stays valid.
class DeviceSet {
 public:
  static constexpr std::size_t kHost = 0;
  static constexpr std::size_t kMax = 1 + Client::kMaxDevices;

  DeviceSet();

  // Index of a GPU's data plane, opened if it is new: that creates a context, which takes its time.
  // Zeros: kHost. kResourceExhausted: too many GPUs; or as MakeCudaBackend.
  [[nodiscard]] Result<std::size_t> Open(const DeviceUuid& uuid);

  std::size_t size() const noexcept { return size_.load(std::memory_order_acquire); }
  MemoryBackend& operator[](std::size_t device) const noexcept { return *backends_[device]; }
  // Keeps the data plane alive.
  std::shared_ptr<MemoryBackend> Share(std::size_t device) const noexcept { return backends_[device]; }

 private:
  Mutex mutex_;                                                // of those who add
  std::array<std::shared_ptr<MemoryBackend>, kMax> backends_;  // [0, size_) never change
  std::atomic<std::size_t> size_{0};
};

}  // namespace kvm
