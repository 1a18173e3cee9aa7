// Finds out whether the chunks of a region's blocks share bytes. It takes O(n log n) for n chunks
// of one block, since kvmd does it for every region that a client sends.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvm {

// One chunk of every block of a part: [first + i * stride, + length) in its segment, i < the block
// count.
struct ChunkSeries {
  std::uint32_t part = 0, segment = 0;
  std::uint64_t first = 0, length = 0;  // bytes; length in [1, stride]
  std::uint64_t stride = 0;
};

struct SharedBytes {
  std::uint32_t part = 0, other = 0;  // of the geometry; other <= part
};

// Returns two series of one segment that share a byte, or that have different strides and
// overlapping extents (no engine lays memory out so); empty if there are none. Preconditions: all
// addresses fit 64 bits, and `block_count` is at least 1.
std::optional<SharedBytes> FindSharedBytes(std::vector<ChunkSeries> series, std::uint64_t block_count);

}  // namespace kvm
