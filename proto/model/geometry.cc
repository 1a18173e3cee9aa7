#include "kvm/geometry.h"

#include <string>
#include <vector>

#include "proto/model/chunk_overlap.h"

namespace kvm {
namespace {

Error Bad(std::size_t part, const std::string& what) {
  return MakeError(Errc::kBadGeometry, "geometry part " + std::to_string(part) + ": " + what);
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
  std::vector<ChunkSeries> chunks;
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
      chunks.push_back(
          {static_cast<std::uint32_t>(i), part.segment, part.offset + r * part.repeat_stride, part.chunk_bytes, part.block_stride});
    }
  }
  if (const std::optional<SharedBytes> shared = FindSharedBytes(std::move(chunks), block_count)) {
    return Bad(shared->part, "shares bytes with part " + std::to_string(shared->other));
  }
  return {};
}

}  // namespace kvm
