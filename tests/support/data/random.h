// Seeded random numbers for tests: the same on every machine, so that a failure can be repeated
// from the seed that the test prints (SplitMix64; Source: Steele, Lea, Flood, OOPSLA 2014).
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace kvm::test {

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t Next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  // In [0, limit); 0 if limit is 0.
  std::uint64_t Below(std::uint64_t limit) { return limit == 0 ? 0 : Next() % limit; }
  // In [low, high].
  std::uint64_t Between(std::uint64_t low, std::uint64_t high) { return low + Below(high - low + 1); }
  bool OneIn(std::uint64_t n) { return Below(n) == 0; }
  template <class Container>
  auto& Pick(Container& from) {
    return from[static_cast<std::size_t>(Below(std::size(from)))];
  }

 private:
  std::uint64_t state_;
};

}  // namespace kvm::test
