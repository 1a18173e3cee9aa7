// Traffic: how much this client has imported from which device's memory to which.
//
// ImportTicket adds to it at an import's end, and the link thread reports it to kvmd. Allocates
// nothing, so that an import ends without a failure of its own. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kvm/device.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/protocol_limits.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

class Traffic {
 public:
  // Zeros: host memory. A pair beyond kMaxTrafficPairs is left out.
  void Add(const DeviceUuid& from, const DeviceUuid& to, std::uint64_t blocks, std::uint64_t bytes) noexcept KVM_EXCLUDES(mutex_);
  void Report(kvmwire::StatsReport& report) const KVM_EXCLUDES(mutex_);

 private:
  struct Sum {
    DeviceUuid from{}, to{};
    std::uint64_t blocks = 0, bytes = 0;
  };

  mutable Mutex mutex_;
  std::array<Sum, kMaxTrafficPairs> sums_ KVM_GUARDED_BY(mutex_);
  std::size_t pairs_ KVM_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvm
