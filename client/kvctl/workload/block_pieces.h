// Which copies move the bytes of some blocks between a region and a buffer: the fewest calls, since on a GPU
// each waits for its copy. Arithmetic only.
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

// Leading pieces that one copy takes: adjacent in one segment, or with at most `max_gap` bytes between
// them, and at most `max_bytes` from the first byte to the last. At least 1 of a list that isn't empty.
std::size_t OneCopy(std::span<const BlockPiece> pieces, std::uint64_t max_gap, std::uint64_t max_bytes);

}  // namespace kvm::ctl
