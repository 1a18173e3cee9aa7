// PeerRate: how fast blocks come from a peer.
//
// A measurement loses its weight with time, so that no peer is left out for good because it was
// slow once, or because others were measured first: the expected rate doubles each minute. A peer
// that has not been measured is expected to be fast, so that it will be. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvm::mesh {

class PeerRate {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // Expected of a peer that has not been measured, in bytes/s.
  static constexpr std::uint64_t kUnknown = std::uint64_t{1} << 40;

  // `bytes` arrived within `time`.
  void Measured(std::uint64_t bytes, std::chrono::duration<double> time, Time now) noexcept;
  // A transfer failed: expected to be half as fast as measured, or slow if it never was measured.
  void Failed(Time now) noexcept;
  // Bytes/s, from 1 to kUnknown.
  std::uint64_t Expected(Time now) const noexcept;
  // As measured; 0: not yet.
  std::uint64_t measured() const noexcept { return measured_; }

 private:
  std::uint64_t measured_ = 0;
  std::uint64_t expected_ = 0;  // as of since_; 0: nothing is known
  Time since_{};
};

}  // namespace kvm::mesh
