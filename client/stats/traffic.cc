#include "client/stats/traffic.h"

#include "proto/wire/protocol_limits.h"

namespace kvm {

void Traffic::Add(const DeviceUuid& from, const DeviceUuid& to, std::uint64_t blocks, std::uint64_t bytes) {
  const MutexLock lock(mutex_);
  const std::pair pair{from, to};
  if (sums_.size() >= kMaxTrafficPairs && !sums_.contains(pair)) return;
  Sum& sum = sums_[pair];
  sum.blocks += blocks;
  sum.bytes += bytes;
}

void Traffic::Report(kvmwire::StatsReport& report) const {
  const MutexLock lock(mutex_);
  for (const auto& [pair, sum] : sums_) {
    kvmwire::DeviceTraffic& out = *report.add_traffic();
    if (pair.first != kHostMemory) out.set_from_device(pair.first.data(), pair.first.size());
    if (pair.second != kHostMemory) out.set_to_device(pair.second.data(), pair.second.size());
    out.set_blocks(sum.blocks);
    out.set_bytes(sum.bytes);
  }
}

}  // namespace kvm
