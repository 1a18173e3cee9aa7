#include "client/region/region_messages.h"

#include <algorithm>
#include <chrono>

namespace kvm {

kvmwire::ClientMessage Unregistration(const RegionRow& row, std::uint32_t ack_timeout_ms) {
  kvmwire::ClientMessage message;
  kvmwire::UnregisterRegion& request = *message.mutable_unregister_region();
  request.set_region(row.row);
  request.set_region_epoch(row.region_epoch);
  request.set_ack_timeout_ms(ack_timeout_ms);
  return message;
}

std::uint32_t AckTimeoutMs(Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(left - left / 10, 1, 60'000));
}

}  // namespace kvm
