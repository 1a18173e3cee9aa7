// Sizes in whole pages and other units.
#pragma once

#include <cstdint>

namespace kvm {

// The smallest multiple of `unit` that is not below `value`. `unit` is not 0, and the sum of both
// fits into 64 bits.
constexpr std::uint64_t RoundUp(std::uint64_t value, std::uint64_t unit) noexcept { return (value + unit - 1) / unit * unit; }

}  // namespace kvm
