// Traffic: how much this client has imported from which device's memory to which.
//
// ImportTicket adds to it at an import's end, and the link thread reports it to kvmd. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "kvm/device.h"
#include "proto/base/thread_safety.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

class Traffic {
 public:
  // Zeros: host memory. A pair beyond kMaxTrafficPairs is left out.
  void Add(const DeviceUuid& from, const DeviceUuid& to, std::uint64_t blocks, std::uint64_t bytes) KVM_EXCLUDES(mutex_);
  void Report(kvmwire::StatsReport& report) const KVM_EXCLUDES(mutex_);

 private:
  struct Sum {
    std::uint64_t blocks = 0, bytes = 0;
  };

  mutable Mutex mutex_;
  std::map<std::pair<DeviceUuid, DeviceUuid>, Sum> sums_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
