// When the requests of a paced replay are due: as far apart as their timestamps, divided by a
// speed.
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

#include "client/kvctl/workload/request.h"

namespace kvm::ctl {

class Pace {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // The first request is due at `start`. `requests` outlives this object; speed > 0.
  Pace(const std::vector<Request>& requests, double speed, TimePoint start) noexcept : requests_(requests), speed_(speed), start_(start) {}

  // One that is stamped before the first is due at the start.
  TimePoint Due(std::size_t request) const noexcept;

 private:
  const std::vector<Request>& requests_;
  const double speed_;
  const TimePoint start_;
};

}  // namespace kvm::ctl
