// Geometry of a region: where the bytes of block b lie, as arithmetic over its segments.
//
// A block is the concatenation of its chunks in a fixed order: for every part in turn, for every
// repeat r < part.count, `chunk_bytes` bytes at
//
//   segment(part.segment).base + part.offset + r * part.repeat_stride + b * part.block_stride
//
// Two regions of the same model and shard agree on that order and on the total, but they may divide
// the bytes into different chunks (one has a tensor per layer, the other one tensor across layers);
// a copy walks both lists. Examples of parts: [blocks, bytes] is one part; [2, blocks, …] is two
// parts; L tensors of [2, blocks, …] are 2L.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvm/error.h"

namespace kvm {

// Equal chunks of contiguous bytes: of block b, `count` of them from `offset` + b × `block_stride`
// on.
struct GeometryPart {
  std::uint32_t segment = 0;       // index into the region's segments
  std::uint64_t offset = 0;        // bytes from the segment's base to block 0's first chunk
  std::uint64_t chunk_bytes = 0;   // contiguous bytes
  std::uint64_t block_stride = 0;  // bytes from block b to block b + 1; at least chunk_bytes
  std::uint32_t count = 1;         // chunks of this part in each block
  // Bytes between two chunks of one block; 0 if and only if count is 1
  std::uint64_t repeat_stride = 0;

  friend bool operator==(const GeometryPart&, const GeometryPart&) = default;
};

// Where each block of a region lies in its segments.
struct Geometry {
  std::uint32_t block_count = 0;
  std::vector<GeometryPart> parts;

  friend bool operator==(const Geometry&, const Geometry&) = default;

  // [block_count, block_bytes] in one segment, nothing between blocks.
  static Geometry Contiguous(std::uint32_t block_count, std::uint64_t block_bytes);

  std::uint64_t BlockBytes() const noexcept;      // sum over all chunks; valid after Validate()
  std::uint32_t ChunksPerBlock() const noexcept;  // valid after Validate()

  // kBadGeometry, the part named: a limit below exceeded, a zero size, an address that does not fit
  // 64 bits, a chunk outside its segment, or two chunks that share a byte.
  // `segment_bytes[i]` is the size of segment i.
  [[nodiscard]] Status Validate(std::span<const std::uint64_t> segment_bytes) const;

  static constexpr std::uint32_t kMaxBlocks = 1u << 26;
  static constexpr std::uint32_t kMaxChunksPerBlock = 4096;
};

}  // namespace kvm
