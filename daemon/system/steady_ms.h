// The steady clock in whole milliseconds, the unit of time of policies and slabs.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvm::daemon {

inline std::uint64_t SteadyMs(std::chrono::steady_clock::time_point time) noexcept {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count());
}

}  // namespace kvm::daemon
