// Seeded random numbers for tests: a failure can be repeated from the seed that the test prints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "proto/base/random.h"

namespace kvm::test {

class Random : public SplitMix {
 public:
  using SplitMix::SplitMix;

  bool OneIn(std::uint64_t n) { return Below(n) == 0; }
  template <class Container>
  auto& Pick(Container& from) {
    return from[static_cast<std::size_t>(Below(std::size(from)))];
  }
};

}  // namespace kvm::test
