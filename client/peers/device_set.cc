#include "client/peers/device_set.h"

#include "cuda/devices.h"

namespace kvm {

DeviceSet::DeviceSet() {
  backends_[kHost] = MakeHostBackend();
  size_.store(1, std::memory_order_release);
}

Result<std::size_t> DeviceSet::Open(const DeviceUuid& uuid) {
  MutexLock lock(mutex_);
  const std::size_t count = size_.load(std::memory_order_relaxed);
  for (std::size_t i = 0; i < count; ++i) {
    if (backends_[i]->device_uuid() == uuid) return i;
  }
  if (count == kMax) {
    return MakeError(Errc::kResourceExhausted, "a client uses at most " + std::to_string(Client::kMaxDevices) + " GPUs");
  }
  Result<std::shared_ptr<MemoryBackend>> backend = MakeCudaBackend(uuid);
  if (!backend) return backend.error();
  backends_[count] = std::move(*backend);
  size_.store(count + 1, std::memory_order_release);
  return count;
}

}  // namespace kvm
