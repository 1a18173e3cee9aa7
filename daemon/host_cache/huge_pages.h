// Pages that the administrator has reserved as huge ones.
#pragma once

#include <cstdint>

namespace kvm::daemon {

inline constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;
// Of pages of kHugePageBytes that are reserved and nobody uses; 0 if unknown.
std::uint64_t FreeReservedHugeBytes() noexcept;

}  // namespace kvm::daemon
