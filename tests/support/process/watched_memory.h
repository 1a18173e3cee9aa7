// A destination in host memory that reports when a copy reaches its next piece, so that a test can
// stop a copy in the middle.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

#include "cuda/memory_backend.h"

namespace kvm::test {

class WatchedMemory final : public LocalMemory {
 public:
  // `before_piece(i)`: piece i of the copies into `memory` is about to be copied, those before it
  // have been. `memory` must outlive this.
  WatchedMemory(const LocalMemory& memory, std::function<void(std::size_t)> before_piece)
      : memory_(memory), before_piece_(std::move(before_piece)) {}

  layout::HandleKind kind() const noexcept override { return memory_.kind(); }
  std::span<const SegmentHandle> handles() const noexcept override { return memory_.handles(); }
  // The host backend asks once for each piece, right before it copies it.
  std::byte* SegmentData(std::size_t segment) const noexcept override {
    before_piece_(pieces_++);
    return memory_.SegmentData(segment);
  }

 private:
  const LocalMemory& memory_;
  const std::function<void(std::size_t)> before_piece_;
  mutable std::size_t pieces_ = 0;
};

}  // namespace kvm::test
