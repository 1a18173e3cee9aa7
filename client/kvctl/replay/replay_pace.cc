#include "client/kvctl/replay/replay_pace.h"

#include <algorithm>

namespace kvm::ctl {

Pace::TimePoint Pace::Due(std::size_t request) const noexcept {
  // A hundred years in nanoseconds fit; what a slow speed makes of them need not.
  constexpr double kMostNs = 4e18;
  const std::uint64_t first_us = requests_.front().timestamp_us, at_us = std::max(requests_[request].timestamp_us, first_us);
  const double after_ns = std::min(static_cast<double>(at_us - first_us) * 1e3 / speed_, kMostNs);
  return start_ + std::chrono::nanoseconds(static_cast<std::int64_t>(after_ns));
}

}  // namespace kvm::ctl
