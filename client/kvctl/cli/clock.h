// The two clocks that kvctl reads: the steady one for durations, the system's for times of day.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvm::ctl {

inline double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Milliseconds since 1970, as kvmd gives times of day (docs/PROTOCOL.md).
inline std::uint64_t UnixTimeMs() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
}

}  // namespace kvm::ctl
