#include "client/mesh/sources/peer_rate.h"

#include <algorithm>
#include <cmath>

namespace kvm::mesh {
namespace {

constexpr std::uint64_t kAfterFailure = std::uint64_t{16} << 20;
constexpr std::chrono::duration<double> kDoubling = std::chrono::minutes(1);

}  // namespace

void PeerRate::Measured(std::uint64_t bytes, std::chrono::duration<double> time, Time now) noexcept {
  if (bytes == 0 || time.count() <= 0) return;
  const double latest = static_cast<double>(bytes) / time.count();
  // Several make a mean: one transfer of a small block says little.
  const double mean = measured_ == 0 ? latest : (static_cast<double>(measured_) * 3 + latest) / 4;
  measured_ = static_cast<std::uint64_t>(std::clamp(mean, 1.0, static_cast<double>(kUnknown)));
  expected_ = measured_;
  since_ = now;
}

void PeerRate::Failed(Time now) noexcept {
  expected_ = expected_ == 0 ? kAfterFailure : std::max<std::uint64_t>(Expected(now) / 2, 1);
  since_ = now;
}

std::uint64_t PeerRate::Expected(Time now) const noexcept {
  if (expected_ == 0) return kUnknown;
  const double minutes = std::max(0.0, std::chrono::duration<double>(now - since_) / kDoubling);
  return static_cast<std::uint64_t>(std::min(static_cast<double>(expected_) * std::exp2(minutes), static_cast<double>(kUnknown)));
}

}  // namespace kvm::mesh
