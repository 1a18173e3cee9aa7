// What the machine has to give: memory, and pages reserved as huge ones.
#pragma once

#include <cstdint>

namespace kvm::daemon {

// Memory that this process can have at all: what is installed, or the limit of its control group if that is less.
// The largest number if unknown.
std::uint64_t UsableMemoryBytes() noexcept;
// Memory that could be allocated now without swapping; the largest number if unknown.
std::uint64_t AvailableMemoryBytes() noexcept;

inline constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;
// Of pages of kHugePageBytes that the administrator has reserved and nobody uses; 0 if unknown.
std::uint64_t FreeReservedHugeBytes() noexcept;

}  // namespace kvm::daemon
