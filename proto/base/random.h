// Deterministic random numbers and mixing: the same on every machine and standard library, since
// seeds are part of kvctl's interface, and tests print theirs (std distributions are not portable).
//
// Source: splitmix64, Sebastiano Vigna, https://prng.di.unimi.it/splitmix64.c (public domain).
#pragma once

#include <bit>
#include <cstdint>

namespace kvm {

constexpr std::uint64_t Mix(std::uint64_t value) noexcept {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

constexpr std::uint64_t Mix(std::uint64_t a, std::uint64_t b) noexcept { return Mix(Mix(a + 0x9E3779B97F4A7C15ULL) ^ b); }

class SplitMix {
 public:
  explicit SplitMix(std::uint64_t seed) noexcept : state_(seed) {}

  std::uint64_t Next() noexcept { return Mix(state_ += 0x9E3779B97F4A7C15ULL); }

  // In [0, bound); 0 for bound 0. The bias of the multiplication is below 2^-32 for bounds below
  // 2^32.
  std::uint64_t Below(std::uint64_t bound) noexcept {
    __extension__ typedef unsigned __int128 Wide;
    return static_cast<std::uint64_t>((static_cast<Wide>(Next()) * bound) >> 64);
  }
  // In [low, high].
  std::uint64_t Between(std::uint64_t low, std::uint64_t high) noexcept { return low + Below(high - low + 1); }

  double Unit() noexcept { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }  // in [0, 1)

  // About exponential with this mean (below 2^20): halvings until the first set bit, plus a uniform
  // remainder. Integers only, since logarithms differ between mathematics libraries.
  std::uint64_t Skewed(std::uint64_t mean) noexcept {
    constexpr std::uint64_t kTwoThirds = 0xAAAAAAAA;  // of 2^32; E[halvings + uniform] is 1.5
    const auto halvings = static_cast<std::uint64_t>(std::countr_zero(Next() | (1ULL << 20)));
    const std::uint64_t units = (halvings << 16) + (Next() >> 48);
    return (mean * units >> 16) * kTwoThirds >> 32;
  }

 private:
  std::uint64_t state_;
};

}  // namespace kvm
