// Waves: how a long list of blocks is divided, so that the GPU copies one part while the CPU makes,
// checks and plans the next. The first is short, since nothing is copied before it is queued; the
// next ones grow, since each costs two launches, up to a size whose validation, which follows its
// copy, ends while the last one is copied. The last is so short that its own copy validates it.
#pragma once

#include <cstddef>

#include "cuda/plan/copy_policy.h"

namespace kvm {

class Waves {
 public:
  explicit Waves(std::size_t blocks) noexcept : blocks_(blocks), next_(blocks < kFewestInWaves ? blocks : kFirst) {}

  // The end of the next wave, which begins at the end of the one before, or at 0. Precondition:
  // that one ended below `blocks`.
  std::size_t NextEnd() noexcept;
  // How many waves there are in all.
  static std::size_t Count(std::size_t blocks) noexcept;

 private:
  static constexpr std::size_t kFewestInWaves = 512, kFirst = 128, kGrowth = 4, kMost = 4096, kLast = kFusedPairs;

  std::size_t blocks_, next_, end_ = 0;
};

}  // namespace kvm
