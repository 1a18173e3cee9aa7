// The steady clock in whole milliseconds, as policies and slabs count time.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvm::daemon {

inline std::uint64_t SteadyMs(std::chrono::steady_clock::time_point time) noexcept {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count());
}

}  // namespace kvm::daemon
