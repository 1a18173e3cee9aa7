// Region geometries from arbitrary numbers: what Validate accepts lies inside its segments, and a
// copy plan of it covers each block's bytes exactly once.
//
// Input: u32 block_count, u8 segments, u64 bytes of each (of at most 4), then parts of u8 segment,
// u64 offset, u64 chunk_bytes, u64 block_stride, u16 count, u64 repeat_stride.
#include "kvm/geometry.h"

#include <algorithm>
#include <cstring>

#include "cuda/copy_plan.h"
#include "tests/fuzz/targets.h"
#include "tests/support/data/geometries.h"

namespace kvm::fuzz {
namespace {

constexpr std::size_t kMaxParts = 256;

void CheckInside(const Geometry& geometry, const std::vector<std::uint64_t>& segments) {
  const std::uint32_t blocks[] = {0, geometry.block_count / 2, geometry.block_count - 1};
  std::uint64_t bytes = 0, chunks = 0;
  for (const GeometryPart& part : geometry.parts) {
    bytes += part.chunk_bytes * part.count;
    chunks += part.count;
    for (const std::uint32_t block : blocks) {
      for (const std::uint32_t repeat : {0u, part.count - 1}) {
        const std::uint64_t begin = part.offset + repeat * part.repeat_stride + block * part.block_stride;
        if (begin > segments[part.segment] || part.chunk_bytes > segments[part.segment] - begin)
          Broken("a valid chunk lies inside its segment");
      }
    }
  }
  if (bytes != geometry.BlockBytes() || chunks != geometry.ChunksPerBlock()) Broken("a block is the sum of its chunks");
}

void CheckPlan(const Geometry& source, const Geometry& destination) {
  const Result<CopyPlan> plan = MakeCopyPlan(source, destination);
  if (!plan) Broken("blocks of one size can be copied");
  std::uint64_t bytes = 0;
  for (const CopyPiece& piece : *plan) {
    if (piece.bytes == 0) Broken("a plan has no empty piece");
    bytes += piece.bytes;
  }
  if (bytes != source.BlockBytes()) Broken("a plan covers the block");
}

template <class T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

}  // namespace

void GeometryTarget(Bytes input) {
  Consumer in(input);
  Geometry geometry;
  geometry.block_count = in.Take<std::uint32_t>();
  std::vector<std::uint64_t> segments(in.Take<std::uint8_t>() % 5);
  for (std::uint64_t& bytes : segments) bytes = in.Take<std::uint64_t>();
  while (!in.empty() && geometry.parts.size() < kMaxParts) {
    GeometryPart part;
    part.segment = in.Take<std::uint8_t>();
    part.offset = in.Take<std::uint64_t>();
    part.chunk_bytes = in.Take<std::uint64_t>();
    part.block_stride = in.Take<std::uint64_t>();
    part.count = in.Take<std::uint16_t>();
    part.repeat_stride = in.Take<std::uint64_t>();
    geometry.parts.push_back(part);
  }
  const Status valid = geometry.Validate(segments);
  if (!valid) {
    if (valid.error().code != Errc::kBadGeometry) Broken("a refused geometry is a bad geometry");
    return;
  }
  CheckInside(geometry, segments);
  CheckPlan(geometry, geometry);
  CheckPlan(geometry, Geometry::Contiguous(1, geometry.BlockBytes()));
  CheckPlan(Geometry::Contiguous(1, geometry.BlockBytes()), geometry);
}

std::vector<std::string> GeometrySeeds() {
  std::vector<std::string> out;
  for (const test::NamedGeometry& layout : test::EngineLayouts(5)) {
    if (layout.segment_bytes.size() > 4) continue;
    std::string seed;
    Put(seed, layout.geometry.block_count);
    Put(seed, static_cast<std::uint8_t>(layout.segment_bytes.size()));
    for (const std::uint64_t bytes : layout.segment_bytes) Put(seed, bytes);
    for (const GeometryPart& part : layout.geometry.parts) {
      Put(seed, static_cast<std::uint8_t>(part.segment));
      Put(seed, part.offset);
      Put(seed, part.chunk_bytes);
      Put(seed, part.block_stride);
      Put(seed, static_cast<std::uint16_t>(part.count));
      Put(seed, part.repeat_stride);
    }
    out.push_back(seed);
  }
  return out;
}

}  // namespace kvm::fuzz
