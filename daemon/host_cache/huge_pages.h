// Huge pages that the administrator has reserved.
#pragma once

#include <cstdint>

namespace kvm::daemon {

inline constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;
// The size of all reserved pages of kHugePageBytes that are free; 0 if unknown.
std::uint64_t FreeReservedHugeBytes() noexcept;

}  // namespace kvm::daemon
