// Overlap check: all chunks of one segment are arithmetic progressions over the block index. Two
// progressions with equal stride s meet iff their residues modulo s meet and their quotient ranges do;
// progressions with different strides must not even have overlapping extents (nobody lays memory out so).
#include "kvm/geometry.h"

#include <algorithm>
#include <string>

namespace kvm {
namespace {

struct Progression {
  std::uint32_t part, segment;
  std::uint64_t first, length, stride, count;  // chunks [first + i*stride, + length), i < count

  std::uint64_t End() const { return first + (count - 1) * stride + length; }
};

Error Bad(std::size_t part, const std::string& what) {
  return MakeError(Errc::kBadGeometry, "geometry part " + std::to_string(part) + ": " + what);
}

// Whether two progressions of one segment share a byte.
bool Meet(const Progression& a, const Progression& b) {
  if (a.End() <= b.first || b.End() <= a.first) return false;
  if (a.stride != b.stride) return true;
  const Progression& low = a.first <= b.first ? a : b;
  const Progression& high = a.first <= b.first ? b : a;
  // high's chunk 0 lies behind low's chunk q (same or next period); later chunks repeat that picture.
  const std::uint64_t distance = high.first - low.first;
  const std::uint64_t quotient = distance / low.stride, residue = distance % low.stride;
  if (residue < low.length && quotient < low.count) return true;
  return residue + high.length > low.stride && quotient + 1 < low.count;
}

bool MultiplyAdd(std::uint64_t a, std::uint64_t b, std::uint64_t& sum) {
  std::uint64_t product = 0;
  return !__builtin_mul_overflow(a, b, &product) && !__builtin_add_overflow(sum, product, &sum);
}

}  // namespace

Geometry Geometry::Contiguous(std::uint32_t block_count, std::uint64_t block_bytes) {
  return Geometry{block_count, {GeometryPart{0, 0, block_bytes, block_bytes, 1, 0}}};
}

std::uint64_t Geometry::BlockBytes() const noexcept {
  std::uint64_t sum = 0;
  for (const GeometryPart& part : parts) sum += part.chunk_bytes * part.count;
  return sum;
}

std::uint32_t Geometry::ChunksPerBlock() const noexcept {
  std::uint32_t sum = 0;
  for (const GeometryPart& part : parts) sum += part.count;
  return sum;
}

Status Geometry::Validate(std::span<const std::uint64_t> segment_bytes) const {
  if (block_count == 0 || block_count > kMaxBlocks) {
    return MakeError(Errc::kBadGeometry,
                     "geometry: block_count " + std::to_string(block_count) + " is not in 1.." + std::to_string(kMaxBlocks));
  }
  if (parts.empty()) return MakeError(Errc::kBadGeometry, "geometry: no parts");
  std::vector<Progression> chunks;
  std::uint64_t block_bytes = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const GeometryPart& part = parts[i];
    if (part.segment >= segment_bytes.size()) {
      return Bad(i, "segment " + std::to_string(part.segment) + " of " + std::to_string(segment_bytes.size()));
    }
    if (part.chunk_bytes == 0 || part.count == 0) return Bad(i, "chunk_bytes and count must not be 0");
    if (part.block_stride < part.chunk_bytes) return Bad(i, "block_stride is below chunk_bytes: blocks overlap");
    if ((part.count > 1) != (part.repeat_stride != 0)) return Bad(i, "repeat_stride goes with count > 1");
    if (chunks.size() + part.count > kMaxChunksPerBlock) {
      return Bad(i, "more than " + std::to_string(kMaxChunksPerBlock) + " chunks a block");
    }
    std::uint64_t end = part.offset;
    if (!MultiplyAdd(part.repeat_stride, part.count - 1, end) || !MultiplyAdd(part.block_stride, block_count - 1, end) ||
        !MultiplyAdd(part.chunk_bytes, 1, end) || !MultiplyAdd(part.chunk_bytes, part.count, block_bytes)) {
      return Bad(i, "addresses leave 64 bits");
    }
    if (end > segment_bytes[part.segment]) {
      return Bad(i, "ends at byte " + std::to_string(end) + " of segment " + std::to_string(part.segment) + ", which has " +
                        std::to_string(segment_bytes[part.segment]));
    }
    for (std::uint32_t r = 0; r < part.count; ++r) {
      chunks.push_back({static_cast<std::uint32_t>(i), part.segment, part.offset + r * part.repeat_stride, part.chunk_bytes,
                        part.block_stride, block_count});
    }
  }
  std::sort(chunks.begin(), chunks.end(),
            [](const Progression& a, const Progression& b) { return a.segment != b.segment ? a.segment < b.segment : a.first < b.first; });
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    for (std::size_t j = i + 1; j < chunks.size() && chunks[j].segment == chunks[i].segment && chunks[j].first < chunks[i].End(); ++j) {
      if (Meet(chunks[i], chunks[j])) {
        return Bad(chunks[j].part, "shares bytes with part " + std::to_string(chunks[i].part));
      }
    }
  }
  return {};
}

}  // namespace kvm
