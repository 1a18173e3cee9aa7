// CopyPlan: how the bytes of a block of a source region map to a block of a destination region.
//
// Both geometries list a block's bytes in the same order but may divide them into different chunks.
// The plan divides at every boundary of either, so that each piece lies in one chunk on both sides
// and, like a chunk, is an arithmetic progression over the block index. A plan is computed once per
// pair of regions, and is immutable.
#pragma once

#include <cstdint>
#include <vector>

#include "kvm/error.h"
#include "kvm/geometry.h"

namespace kvm {

struct CopyPiece {
  std::uint32_t source_segment;
  std::uint32_t destination_segment;
  std::uint64_t source_offset;  // of block 0, bytes from the segment's base
  std::uint64_t source_stride;  // bytes a block
  std::uint64_t destination_offset;
  std::uint64_t destination_stride;
  std::uint64_t bytes;
};

using CopyPlan = std::vector<CopyPiece>;

// kBadGeometry: the blocks differ in size. Both geometries are validated already.
// Neighbouring pieces that are contiguous on both sides for every block are merged.
[[nodiscard]] Result<CopyPlan> MakeCopyPlan(const Geometry& source, const Geometry& destination);

}  // namespace kvm
