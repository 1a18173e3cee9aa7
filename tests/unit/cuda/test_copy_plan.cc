// Copy plans: blocks copied by plan are, byte for byte, what a naive walk over both geometries
// copies, and nothing else in the destination is touched.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cuda/copy_plan.h"
#include "tests/catch.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;

using Segments = std::vector<std::vector<std::uint8_t>>;

constexpr std::uint8_t kPoison = 0xA5;

Segments Filled(const std::vector<std::uint64_t>& sizes, test::Random* random) {
  Segments out;
  for (const std::uint64_t bytes : sizes) {
    std::vector<std::uint8_t> segment(bytes, kPoison);
    if (random != nullptr) std::generate(segment.begin(), segment.end(), [&] { return static_cast<std::uint8_t>(random->Next()); });
    out.push_back(std::move(segment));
  }
  return out;
}

// Address of every byte of a block, in the block's order: the definition in kvm/geometry.h.
std::vector<std::uint8_t*> Bytes(const Geometry& geometry, Segments& segments, std::uint32_t block) {
  std::vector<std::uint8_t*> out;
  for (const GeometryPart& part : geometry.parts) {
    for (std::uint32_t repeat = 0; repeat < part.count; ++repeat) {
      for (std::uint64_t byte = 0; byte < part.chunk_bytes; ++byte) {
        out.push_back(&segments[part.segment].at(part.offset + repeat * part.repeat_stride + block * part.block_stride + byte));
      }
    }
  }
  return out;
}

void CopyByPlan(const CopyPlan& plan, const Segments& source, std::uint32_t from, Segments& destination, std::uint32_t to) {
  for (const CopyPiece& piece : plan) {
    const std::uint64_t source_begin = piece.source_offset + from * piece.source_stride;
    const std::uint64_t destination_begin = piece.destination_offset + to * piece.destination_stride;
    REQUIRE(source_begin + piece.bytes <= source[piece.source_segment].size());
    REQUIRE(destination_begin + piece.bytes <= destination[piece.destination_segment].size());
    std::memcpy(destination[piece.destination_segment].data() + destination_begin, source[piece.source_segment].data() + source_begin,
                piece.bytes);
  }
}

// Copies `pairs` both ways of doing it and compares whole segments, poison included.
void CompareWithReference(const test::NamedGeometry& from, const test::NamedGeometry& to,
                          const std::vector<std::pair<std::uint32_t, std::uint32_t>>& pairs, test::Random& random) {
  const Result<CopyPlan> plan = MakeCopyPlan(from.geometry, to.geometry);
  KVM_REQUIRE_OK(plan);
  Segments source = Filled(from.segment_bytes, &random);
  Segments expected = Filled(to.segment_bytes, nullptr), actual = expected;
  for (const auto& [source_block, destination_block] : pairs) {
    const std::vector<std::uint8_t*> read = Bytes(from.geometry, source, source_block);
    const std::vector<std::uint8_t*> write = Bytes(to.geometry, expected, destination_block);
    REQUIRE(read.size() == write.size());
    for (std::size_t i = 0; i < read.size(); ++i) *write[i] = *read[i];
    CopyByPlan(*plan, source, source_block, actual, destination_block);
  }
  CHECK(actual == expected);
  std::uint64_t bytes = 0;
  for (const CopyPiece& piece : *plan) bytes += piece.bytes;
  CHECK(bytes == from.geometry.BlockBytes());
}

// Cuts `block_bytes` into random parts, each in one of the segments, with random gaps; valid by
// construction.
test::NamedGeometry RandomGeometry(test::Random& random, std::uint64_t block_bytes, std::uint32_t blocks) {
  const auto segment_count = static_cast<std::uint32_t>(random.Between(1, 3));
  test::NamedGeometry out{"random", {blocks, {}}, std::vector<std::uint64_t>(segment_count, 0)};
  for (std::uint64_t left = block_bytes; left > 0;) {
    GeometryPart part;
    part.segment = static_cast<std::uint32_t>(random.Below(segment_count));
    part.count = random.OneIn(2) ? static_cast<std::uint32_t>(random.Between(2, 4)) : 1;
    if (part.count > left) part.count = 1;
    part.chunk_bytes = random.Between(1, std::max<std::uint64_t>(1, left / part.count));
    left -= part.chunk_bytes * part.count;
    part.offset = out.segment_bytes[part.segment] + random.Below(9);
    // Repeats either inside a block's stride (block major) or a plane apart (layer major).
    if (part.count > 1 && random.OneIn(2)) {
      part.repeat_stride = part.chunk_bytes + random.Below(5);
      part.block_stride = part.repeat_stride * part.count + random.Below(5);
    } else {
      part.block_stride = part.chunk_bytes + random.Below(5);
      part.repeat_stride = part.count > 1 ? part.block_stride * blocks + random.Below(5) : 0;
    }
    out.segment_bytes[part.segment] =
        part.offset + (part.count - 1) * part.repeat_stride + (blocks - 1) * part.block_stride + part.chunk_bytes;
    out.geometry.parts.push_back(part);
  }
  for (std::uint64_t& bytes : out.segment_bytes) bytes += random.Between(1, 8);
  return out;
}

}  // namespace

TEST_CASE("Copy plan: every engine layout copies to every other one", "[unit]") {
  test::Random random(11);
  for (const test::NamedGeometry& from : test::EngineLayouts(5)) {
    for (const test::NamedGeometry& to : test::EngineLayouts(7)) {
      INFO(from.name << " to " << to.name);
      CompareWithReference(from, to, {{0, 6}, {4, 0}, {2, 3}}, random);
    }
  }
}

TEST_CASE("Copy plan: random pairs of layouts copy what a byte-wise walk copies", "[unit]") {
  const std::uint64_t seed = 31337;
  test::Random random(seed);
  for (int round = 0; round < 2000; ++round) {
    const std::uint64_t block_bytes = random.Between(1, 200);
    const auto source_blocks = static_cast<std::uint32_t>(random.Between(1, 5)),
               destination_blocks = static_cast<std::uint32_t>(random.Between(1, 5));
    const test::NamedGeometry from = RandomGeometry(random, block_bytes, source_blocks);
    const test::NamedGeometry to = RandomGeometry(random, block_bytes, destination_blocks);
    INFO("seed " << seed << ", round " << round);
    KVM_REQUIRE_OK(from.geometry.Validate(from.segment_bytes));
    KVM_REQUIRE_OK(to.geometry.Validate(to.segment_bytes));
    CompareWithReference(
        from, to,
        {{static_cast<std::uint32_t>(random.Below(source_blocks)), static_cast<std::uint32_t>(random.Below(destination_blocks))},
         {static_cast<std::uint32_t>(random.Below(source_blocks)), static_cast<std::uint32_t>(random.Below(destination_blocks))}},
        random);
  }
}

TEST_CASE("Copy plan: equal contiguous layouts need one piece", "[unit]") {
  const Result<CopyPlan> plan = MakeCopyPlan(Geometry::Contiguous(8, 4096), Geometry::Contiguous(100, 4096));
  KVM_REQUIRE_OK(plan);
  REQUIRE(plan->size() == 1);
  CHECK(plan->front().bytes == 4096);
  CHECK(plan->front().source_stride == 4096);
  CHECK(plan->front().destination_stride == 4096);
}

TEST_CASE("Copy plan: pieces that touch on both sides are merged, others are not", "[unit]") {
  const Geometry halves{4, {{0, 0, 32, 64, 2, 32}}};
  const Result<CopyPlan> merged = MakeCopyPlan(halves, Geometry::Contiguous(4, 64));
  KVM_REQUIRE_OK(merged);
  CHECK(merged->size() == 1);
  const Geometry planes{4, {{0, 0, 32, 32, 2, 128}}};
  const Result<CopyPlan> apart = MakeCopyPlan(planes, Geometry::Contiguous(4, 64));
  KVM_REQUIRE_OK(apart);
  CHECK(apart->size() == 2);
}

TEST_CASE("Copy plan: blocks of different sizes are refused, both sizes named", "[unit]") {
  const Result<CopyPlan> plan = MakeCopyPlan(Geometry::Contiguous(4, 64), Geometry::Contiguous(4, 65));
  KVM_CHECK_ERROR(plan, Errc::kBadGeometry, "64");
  KVM_CHECK_ERROR(plan, Errc::kBadGeometry, "65");
}
