// Geometry: the documented layouts are accepted, everything that overflows, overlaps or leaves its
// segments is refused with the part named, and a brute-force byte map agrees.
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kvm/geometry.h"
#include "tests/catch.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;

constexpr std::uint64_t kHuge = std::numeric_limits<std::uint64_t>::max();

Status ValidateIn(const Geometry& geometry, std::vector<std::uint64_t> segments) { return geometry.Validate(segments); }

enum class ByteMap { kDisjoint, kOverlap, kOutside };

// The truth, byte by byte; only for small geometries.
ByteMap BruteForce(const Geometry& geometry, const std::vector<std::uint64_t>& segments) {
  std::vector<std::vector<bool>> taken;
  for (const std::uint64_t bytes : segments) taken.emplace_back(bytes, false);
  bool overlap = false;
  for (const GeometryPart& part : geometry.parts) {
    for (std::uint32_t block = 0; block < geometry.block_count; ++block) {
      for (std::uint32_t repeat = 0; repeat < part.count; ++repeat) {
        const std::uint64_t begin = part.offset + repeat * part.repeat_stride + block * part.block_stride;
        for (std::uint64_t at = begin; at < begin + part.chunk_bytes; ++at) {
          if (at >= segments[part.segment]) return ByteMap::kOutside;
          overlap = overlap || taken[part.segment][at];
          taken[part.segment][at] = true;
        }
      }
    }
  }
  return overlap ? ByteMap::kOverlap : ByteMap::kDisjoint;
}

// Whether all parts in one segment have one block stride: where the overlap check is exact.
bool OneStridePerSegment(const Geometry& geometry) {
  for (const GeometryPart& a : geometry.parts) {
    for (const GeometryPart& b : geometry.parts) {
      if (a.segment == b.segment && a.block_stride != b.block_stride) return false;
    }
  }
  return true;
}

}  // namespace

TEST_CASE("Geometry: every layout that engines use is valid and has the same block size", "[unit]") {
  for (const test::NamedGeometry& layout : test::EngineLayouts(12)) {
    INFO(layout.name);
    KVM_REQUIRE_OK(layout.geometry.Validate(layout.segment_bytes));
    CHECK(layout.geometry.BlockBytes() == test::kLayoutBlockBytes);
    CHECK(BruteForce(layout.geometry, layout.segment_bytes) == ByteMap::kDisjoint);
  }
}

TEST_CASE("Geometry: the layouts fill their segments to the last byte, and a byte less is refused", "[unit]") {
  for (const test::NamedGeometry& layout : test::EngineLayouts(5)) {
    for (std::size_t segment = 0; segment < layout.segment_bytes.size(); ++segment) {
      std::vector<std::uint64_t> short_of_one = layout.segment_bytes;
      --short_of_one[segment];
      INFO(layout.name << ", segment " << segment);
      KVM_CHECK_ERROR(layout.geometry.Validate(short_of_one), Errc::kBadGeometry, "ends at byte");
    }
  }
}

TEST_CASE("Geometry: an MLA latent is one chunk a layer", "[unit]") {
  // [layers] tensors of [blocks, block_tokens, 576] bytes
  constexpr std::uint64_t kLatent = 16 * 576;
  Geometry geometry{100, {}};
  std::vector<std::uint64_t> segments;
  for (std::uint32_t layer = 0; layer < 61; ++layer) {
    geometry.parts.push_back({layer, 0, kLatent, kLatent, 1, 0});
    segments.push_back(100 * kLatent);
  }
  KVM_REQUIRE_OK(geometry.Validate(segments));
  CHECK(geometry.BlockBytes() == 61 * kLatent);
  CHECK(geometry.ChunksPerBlock() == 61);
}

TEST_CASE("Geometry: Contiguous is one part without gaps", "[unit]") {
  const Geometry geometry = Geometry::Contiguous(10, 4096);
  KVM_REQUIRE_OK(ValidateIn(geometry, {40960}));
  CHECK(geometry.BlockBytes() == 4096);
  CHECK(geometry.ChunksPerBlock() == 1);
  KVM_CHECK_ERROR(ValidateIn(geometry, {40959}), Errc::kBadGeometry, "part 0");
}

TEST_CASE("Geometry: the block count is limited to both sides", "[unit]") {
  KVM_CHECK_ERROR(ValidateIn(Geometry::Contiguous(0, 1), {kHuge}), Errc::kBadGeometry, "block_count");
  KVM_REQUIRE_OK(ValidateIn(Geometry::Contiguous(Geometry::kMaxBlocks, 1), {Geometry::kMaxBlocks}));
  KVM_CHECK_ERROR(ValidateIn(Geometry::Contiguous(Geometry::kMaxBlocks + 1, 1), {kHuge}), Errc::kBadGeometry, "block_count");
  KVM_CHECK_ERROR(ValidateIn(Geometry::Contiguous(std::numeric_limits<std::uint32_t>::max(), 1), {kHuge}), Errc::kBadGeometry,
                  "block_count");
}

TEST_CASE("Geometry: a geometry without parts or with an empty part is refused", "[unit]") {
  KVM_CHECK_ERROR(ValidateIn({1, {}}, {64}), Errc::kBadGeometry, "no parts");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 0, 8, 1, 0}}}, {64}), Errc::kBadGeometry, "part 0");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 8, 8, 0, 0}}}, {64}), Errc::kBadGeometry, "part 0");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 8, 0, 1, 0}}}, {64}), Errc::kBadGeometry, "part 0");
}

TEST_CASE("Geometry: a part in a segment that does not exist is refused, the part named", "[unit]") {
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 8, 8, 1, 0}, {1, 0, 8, 8, 1, 0}}}, {64}), Errc::kBadGeometry, "part 1");
  KVM_CHECK_ERROR(ValidateIn({1, {{std::numeric_limits<std::uint32_t>::max(), 0, 8, 8, 1, 0}}}, {64}), Errc::kBadGeometry, "part 0");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 8, 8, 1, 0}}}, {}), Errc::kBadGeometry, "part 0");
}

TEST_CASE("Geometry: blocks of one part that overlap are refused", "[unit]") {
  KVM_CHECK_ERROR(ValidateIn({2, {{0, 0, 8, 7, 1, 0}}}, {64}), Errc::kBadGeometry, "block_stride");
}

TEST_CASE("Geometry: repeat_stride and count go together", "[unit]") {
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 8, 32, 2, 0}}}, {64}), Errc::kBadGeometry, "repeat_stride");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 8, 32, 1, 8}}}, {64}), Errc::kBadGeometry, "repeat_stride");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 8, 32, 2, 7}}}, {64}), Errc::kBadGeometry, "shares bytes");
}

TEST_CASE("Geometry: chunks per block are limited, over all parts", "[unit]") {
  constexpr std::uint32_t kMax = Geometry::kMaxChunksPerBlock;
  KVM_REQUIRE_OK(ValidateIn({1, {{0, 0, 1, kMax, kMax, 1}}}, {kMax}));
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 1, kMax + 1, kMax + 1, 1}}}, {kHuge}), Errc::kBadGeometry, "chunks");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 1, kMax, kMax, 1}, {1, 0, 1, 1, 1, 0}}}, {kMax, 1}), Errc::kBadGeometry, "part 1");
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, 1, 1, std::numeric_limits<std::uint32_t>::max(), 1}}}, {kHuge}), Errc::kBadGeometry, "chunks");
}

TEST_CASE("Geometry: an address that does not fit 64 bits is refused, whichever term exceeds them", "[unit]") {
  const GeometryPart fits{0, 0, 8, 8, 1, 0};
  const GeometryPart overflows[] = {
      {0, kHuge, 8, 8, 1, 0},      // offset + chunk
      {0, kHuge - 7, 8, 8, 1, 0},  // … by one byte
      {0, 0, 8, kHuge, 1, 0},      // (blocks - 1) * stride
      // … not the product, the sum with the others
      {0, 0, 8, kHuge / 2, 1, 0},
      {0, 0, 8, 8, 3, kHuge / 2 + 1},  // (count - 1) * repeat
      {0, 0, kHuge, kHuge, 1, 0},
      {0, 0, kHuge / 2, kHuge / 2, 4, 1},  // the block's own size
  };
  for (const GeometryPart& part : overflows) {
    INFO("offset " << part.offset << " chunk " << part.chunk_bytes << " stride " << part.block_stride);
    KVM_CHECK_ERROR(ValidateIn({3, {fits, part}}, {kHuge}), Errc::kBadGeometry, "part 1: ");
  }
}

TEST_CASE("Geometry: a block size over several parts that does not fit 64 bits is refused", "[unit]") {
  const std::uint64_t half = kHuge / 2 + 1;
  KVM_CHECK_ERROR(ValidateIn({1, {{0, 0, half, half, 1, 0}, {1, 0, half, half, 1, 0}}}, {kHuge, kHuge}), Errc::kBadGeometry, "64 bits");
}

TEST_CASE("Geometry: parts that share one byte are refused, both named", "[unit]") {
  KVM_REQUIRE_OK(ValidateIn({2, {{0, 0, 8, 16, 1, 0}, {0, 8, 8, 16, 1, 0}}}, {64}));
  KVM_CHECK_ERROR(ValidateIn({2, {{0, 0, 9, 16, 1, 0}, {0, 8, 8, 16, 1, 0}}}, {64}), Errc::kBadGeometry,
                  "part 1: shares bytes with part 0");
  KVM_CHECK_ERROR(ValidateIn({2, {{0, 0, 8, 16, 1, 0}, {0, 9, 8, 16, 1, 0}}}, {64}), Errc::kBadGeometry,
                  "part 1: shares bytes with part 0");
  KVM_REQUIRE_OK(ValidateIn({2, {{0, 0, 8, 8, 1, 0}, {1, 0, 8, 8, 1, 0}}}, {16, 16}));
}

TEST_CASE("Geometry: what Validate accepts is disjoint and inside, byte for byte", "[unit]") {
  const std::uint64_t seed = 20260101;
  INFO("seed " << seed);
  test::Random random(seed);
  int accepted = 0, overlapping = 0, outside = 0;
  for (int round = 0; round < 30000; ++round) {
    const auto segment_count = static_cast<std::uint32_t>(random.Between(1, 2));
    std::vector<std::uint64_t> segments;
    for (std::uint32_t i = 0; i < segment_count; ++i) segments.push_back(random.Between(16, 160));
    Geometry geometry{static_cast<std::uint32_t>(random.Between(1, 6)), {}};
    const std::uint64_t common_stride = random.Between(4, 24);
    const std::uint64_t part_count = random.Between(1, 4);
    for (std::uint64_t i = 0; i < part_count; ++i) {
      GeometryPart part;
      part.segment = static_cast<std::uint32_t>(random.Below(segment_count));
      part.offset = random.Below(40);
      part.chunk_bytes = random.Between(1, 6);
      part.block_stride = random.OneIn(6) ? random.Between(part.chunk_bytes, 30) : std::max(common_stride, part.chunk_bytes);
      part.count = random.OneIn(3) ? static_cast<std::uint32_t>(random.Between(2, 3)) : 1;
      part.repeat_stride = part.count > 1 ? random.Between(1, 40) : 0;
      geometry.parts.push_back(part);
    }
    const Status status = geometry.Validate(segments);
    const ByteMap truth = BruteForce(geometry, segments);
    if (status) {
      ++accepted;
      if (truth != ByteMap::kDisjoint) FAIL("round " << round << ": accepted although bytes overlap or lie outside");
    } else if (truth == ByteMap::kDisjoint && OneStridePerSegment(geometry)) {
      FAIL("round " << round << ": refused although disjoint: " << status.error().message);
    }
    overlapping += truth == ByteMap::kOverlap;
    outside += truth == ByteMap::kOutside;
  }
  CHECK(accepted > 1000);
  CHECK(overlapping > 1000);
  CHECK(outside > 1000);
}

TEST_CASE("Geometry: among many chunks of one stride, two that share a byte are found wherever they are", "[unit]") {
  test::Random random(7);
  int accepted = 0, overlapping = 0;
  for (int round = 0; round < 3000; ++round) {
    // Chunks fill a period from some residue on, each a few periods later or not; then perhaps one
    // more anywhere.
    const std::uint64_t stride = random.Between(60, 120);
    const std::uint64_t begin = random.Below(stride);
    Geometry geometry{static_cast<std::uint32_t>(random.Between(1, 5)), {}};
    for (std::uint64_t at = 0;;) {
      const std::uint64_t bytes = random.Between(1, 5);
      if (at + bytes > stride) break;
      geometry.parts.push_back({0, begin + at + stride * random.Below(4), bytes, stride, 1, 0});
      at += bytes;
    }
    if (random.OneIn(2)) {
      geometry.parts.push_back({0, random.Below(stride * 8), random.Between(1, 3), stride, 1, 0});
      std::swap(geometry.parts.back(), random.Pick(geometry.parts));
    }
    const std::vector<std::uint64_t> segments{stride * 16};
    const Status status = geometry.Validate(segments);
    const ByteMap truth = BruteForce(geometry, segments);
    REQUIRE(truth != ByteMap::kOutside);
    if (status.has_value() != (truth == ByteMap::kDisjoint)) FAIL("round " << round << ": accepted " << status.has_value());
    (truth == ByteMap::kDisjoint ? accepted : overlapping)++;
  }
  CHECK(accepted > 500);
  CHECK(overlapping > 500);
}

TEST_CASE("Geometry: as many chunks as a block may have, all interleaved, and one of them moved by a byte", "[unit]") {
  constexpr std::uint32_t kMax = Geometry::kMaxChunksPerBlock;
  Geometry geometry{1000, {}};
  for (std::uint32_t i = 0; i < kMax; ++i) geometry.parts.push_back({0, std::uint64_t{64} * i, 64, std::uint64_t{64} * kMax, 1, 0});
  const std::vector<std::uint64_t> segments{std::uint64_t{64} * kMax * 1001};
  KVM_REQUIRE_OK(geometry.Validate(segments));
  geometry.parts[2047].offset += 1;
  KVM_CHECK_ERROR(geometry.Validate(segments), Errc::kBadGeometry, "part 2048: shares bytes with part 2047");
  geometry.parts[2047].offset -= 1;
  geometry.parts[kMax - 1].offset += 1;  // into the first chunk of the next block
  KVM_CHECK_ERROR(geometry.Validate(segments), Errc::kBadGeometry, "part 4095: shares bytes with part 0");
  // Another stride
  geometry.parts[kMax - 1] = {0, 64 * (kMax - 1), 64, std::uint64_t{64} * kMax + 1, 1, 0};
  KVM_CHECK_ERROR(geometry.Validate(segments), Errc::kBadGeometry, "shares bytes");
}
