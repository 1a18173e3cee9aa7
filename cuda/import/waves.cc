#include "cuda/import/waves.h"

#include <algorithm>

namespace kvm {

std::size_t Waves::NextEnd() noexcept {
  const std::size_t last = blocks_ < kFewestInWaves ? 0 : kLast;
  end_ = end_ < blocks_ - last ? std::min(blocks_ - last, end_ + next_) : blocks_;
  next_ = std::min(next_ * kGrowth, kMost);
  return end_;
}

std::size_t Waves::Count(std::size_t blocks) noexcept {
  Waves waves(blocks);
  std::size_t count = 1;
  while (waves.NextEnd() < blocks) ++count;
  return count;
}

}  // namespace kvm
