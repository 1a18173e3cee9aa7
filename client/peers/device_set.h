// DeviceSet: the memory backends of a client: that of host memory, and those of the GPUs that it
// imports to.
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

  // Returns the index of a GPU's backend, and opens it if it is new. That creates a context, which
  // takes some 100 ms. For a UUID of zeros, returns kHost. kResourceExhausted: too many GPUs. Also
  // the errors of MakeCudaBackend.
  [[nodiscard]] Result<std::size_t> Open(const DeviceUuid& uuid);

  std::size_t size() const noexcept { return size_.load(std::memory_order_acquire); }
  MemoryBackend& operator[](std::size_t device) const noexcept { return *backends_[device]; }
  // Shares the ownership of the backend.
  std::shared_ptr<MemoryBackend> Share(std::size_t device) const noexcept { return backends_[device]; }

 private:
  Mutex mutex_;                                                // serialises Open
  std::array<std::shared_ptr<MemoryBackend>, kMax> backends_;  // [0, size_) never change
  std::atomic<std::size_t> size_{0};
};

}  // namespace kvm
