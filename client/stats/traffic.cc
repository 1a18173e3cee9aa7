#include "client/stats/traffic.h"

#include <algorithm>

namespace kvm {

void Traffic::Add(const DeviceUuid& from, const DeviceUuid& to, std::uint64_t blocks, std::uint64_t bytes) noexcept {
  const MutexLock lock(mutex_);
  Sum* const end = sums_.data() + pairs_;
  Sum* sum = std::find_if(sums_.data(), end, [&](const Sum& each) { return each.from == from && each.to == to; });
  if (sum == end) {
    if (pairs_ == sums_.size()) return;
    ++pairs_;
    *sum = {from, to, 0, 0};
  }
  sum->blocks += blocks;
  sum->bytes += bytes;
}

void Traffic::Report(kvmwire::StatsReport& report) const {
  const MutexLock lock(mutex_);
  for (std::size_t i = 0; i < pairs_; ++i) {
    const Sum& sum = sums_[i];
    kvmwire::DeviceTraffic& out = *report.add_traffic();
    if (sum.from != kHostMemory) out.set_from_device(sum.from.data(), sum.from.size());
    if (sum.to != kHostMemory) out.set_to_device(sum.to.data(), sum.to.size());
    out.set_blocks(sum.blocks);
    out.set_bytes(sum.bytes);
  }
}

}  // namespace kvm
