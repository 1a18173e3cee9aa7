// Divides the bytes of some blocks into copies between a region and a buffer. It makes few copies,
// since on a GPU the caller waits for each one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvm/geometry.h"

namespace kvm::ctl {

// Contiguous bytes of one block.
struct BlockPiece {
  std::uint32_t segment = 0;
  std::uint64_t offset = 0;  // in the segment
  std::uint64_t bytes = 0;
  std::size_t block = 0;           // index into the list of blocks
  std::uint64_t block_offset = 0;  // of the piece in its block

  std::uint64_t end() const noexcept { return offset + bytes; }
};

// All bytes of `blocks` (all different), in order of address, none of more than `max_bytes`.
std::vector<BlockPiece> PiecesOf(const Geometry& geometry, std::span<const std::uint32_t> blocks, std::uint64_t max_bytes);

// How many leading pieces one copy moves: pieces of one segment that are adjacent, or have gaps of
// at most `max_gap` bytes, with at most `max_bytes` from the first byte to the last. At least 1 if
// the list is not empty.
std::size_t OneCopy(std::span<const BlockPiece> pieces, std::uint64_t max_gap, std::uint64_t max_bytes);

}  // namespace kvm::ctl
