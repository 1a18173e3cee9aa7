// Whether the chunks of a region's blocks share bytes, in O(n log n) of the chunks of one block: kvmd does it for whatever a
// client sends.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvm {

// One chunk of every block of a part: [first + i * stride, + length) in its segment, i < the block count.
struct ChunkSeries {
  std::uint32_t part = 0, segment = 0;
  std::uint64_t first = 0, length = 0;  // bytes; length in [1, stride]
  std::uint64_t stride = 0;
};

struct SharedBytes {
  std::uint32_t part = 0, other = 0;  // of the geometry; other <= part
};

// Two series of one segment that share a byte, or that have different strides and whose extents overlap (nobody lays
// memory out so). Nothing if there are none. All addresses fit 64 bits; `block_count` is at least 1.
std::optional<SharedBytes> FindSharedBytes(std::vector<ChunkSeries> series, std::uint64_t block_count);

}  // namespace kvm
