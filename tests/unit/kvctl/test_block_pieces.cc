// Copies between blocks and a buffer: every byte once, in as few copies as there are stretches.
#include <set>

#include "client/kvctl/workload/block_pieces.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

constexpr std::uint64_t kNoLimit = 1 << 30;

// Pieces of each copy.
std::vector<std::size_t> Copies(std::span<const BlockPiece> pieces, std::uint64_t max_gap, std::uint64_t max_bytes) {
  std::vector<std::size_t> copies;
  while (!pieces.empty()) {
    copies.push_back(OneCopy(pieces, max_gap, max_bytes));
    pieces = pieces.subspan(copies.back());
  }
  return copies;
}

}  // namespace

TEST_CASE("Block pieces: adjacent blocks are one copy, in whatever order they are named", "[unit]") {
  const std::vector<BlockPiece> pieces = PiecesOf(Geometry::Contiguous(100, 64), std::vector<std::uint32_t>{5, 3, 4, 9}, kNoLimit);
  REQUIRE(pieces.size() == 4);
  CHECK(pieces[0].offset == 3 * 64);
  CHECK(pieces[0].block == 1);
  CHECK(pieces[2].block == 0);
  CHECK(Copies(pieces, 0, kNoLimit) == std::vector<std::size_t>{3, 1});
  CHECK(Copies(pieces, 3 * 64, kNoLimit) == std::vector<std::size_t>{4});
  CHECK(Copies(pieces, 3 * 64 - 1, kNoLimit) == std::vector<std::size_t>{3, 1});
  CHECK(Copies(pieces, 0, 128) == std::vector<std::size_t>{2, 1, 1});
}

TEST_CASE("Block pieces: every byte of every block is in exactly one piece, in each layout", "[unit]") {
  const Geometry layouts[] = {Geometry::Contiguous(8, 96), Geometry{8, {{0, 0, 32, 32, 3, 8 * 32}}},
                              Geometry{8, {{0, 16, 32, 64, 2, 512}, {1, 8, 32, 40, 1, 0}}}};
  for (const Geometry& geometry : layouts) {
    for (const std::uint64_t max_bytes : {kNoLimit, std::uint64_t{24}}) {
      const std::vector<std::uint32_t> blocks{6, 0, 1};
      std::set<std::pair<std::size_t, std::uint64_t>> covered;
      std::set<std::pair<std::uint32_t, std::uint64_t>> addresses;
      for (const BlockPiece& piece : PiecesOf(geometry, blocks, max_bytes)) {
        CHECK(piece.bytes <= max_bytes);
        for (std::uint64_t i = 0; i < piece.bytes; ++i) {
          CHECK(covered.insert({piece.block, piece.block_offset + i}).second);
          CHECK(addresses.insert({piece.segment, piece.offset + i}).second);
        }
      }
      CHECK(covered.size() == blocks.size() * geometry.BlockBytes());
      CHECK(covered.rbegin()->second == geometry.BlockBytes() - 1);
    }
  }
}

TEST_CASE("Block pieces: pieces of two segments are never one copy", "[unit]") {
  const Geometry geometry{4, {{0, 0, 8, 8, 1, 0}, {1, 0, 8, 8, 1, 0}}};
  CHECK(Copies(PiecesOf(geometry, std::vector<std::uint32_t>{0, 1}, kNoLimit), kNoLimit, kNoLimit) == std::vector<std::size_t>{2, 2});
  CHECK(OneCopy({}, 0, kNoLimit) == 0);
}
