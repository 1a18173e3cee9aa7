// BlockPool: least recently used, tails first; and the content that blocks carry.
#include <algorithm>
#include <vector>

#include "client/kvctl/block_content.h"
#include "client/kvctl/block_pool.h"
#include "client/kvctl/random.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

BlockKey Key(std::uint64_t n) { return {Mix(n + 1), Mix(n + 1000)}; }

// Serves a request: what is held from the front on, then new blocks. Returns the number held.
std::size_t Serve(BlockPool& pool, const std::vector<std::uint64_t>& ids) {
  std::vector<std::uint32_t> blocks;
  for (const std::uint64_t id : ids) {
    const auto block = pool.PinHeld(Key(id));
    if (!block) break;
    blocks.push_back(*block);
  }
  const std::size_t held = blocks.size();
  for (std::size_t i = held; i < ids.size(); ++i) {
    const auto block = pool.Allocate();
    if (!block) break;
    pool.Assign(*block, Key(ids[i]));
    blocks.push_back(*block);
  }
  pool.Release(blocks);
  return held;
}

}  // namespace

TEST_CASE("BlockPool: blocks are held until the pool is full, then the tail of the oldest request leaves", "[unit]") {
  BlockPool pool(6);
  CHECK(Serve(pool, {1, 2, 3}) == 0);
  CHECK(Serve(pool, {4, 5, 6}) == 0);
  CHECK(pool.evictions() == 0);
  CHECK(Serve(pool, {7}) == 0);
  CHECK(pool.evictions() == 1);
  CHECK(Serve(pool, {1, 2, 3}) == 2);  // 3 left first
}

TEST_CASE("BlockPool: what is used again is not the next to leave", "[unit]") {
  BlockPool pool(4);
  Serve(pool, {1, 2});
  Serve(pool, {3, 4});
  CHECK(Serve(pool, {1, 2}) == 2);
  Serve(pool, {5, 6});
  CHECK(Serve(pool, {1, 2}) == 2);
  CHECK(Serve(pool, {3, 4}) == 0);
}

TEST_CASE("BlockPool: a pinned block is never given away", "[unit]") {
  BlockPool pool(3);
  Serve(pool, {1, 2, 3});
  const auto one = pool.PinHeld(Key(1));
  REQUIRE(one.has_value());
  const auto a = pool.Allocate(), b = pool.Allocate();
  REQUIRE(a.has_value());
  REQUIRE(b.has_value());
  CHECK(*a != *one);
  CHECK(*b != *one);
  CHECK_FALSE(pool.Allocate().has_value());
}

TEST_CASE("BlockPool: a request longer than the pool keeps what fits", "[unit]") {
  BlockPool pool(3);
  CHECK(Serve(pool, {1, 2, 3, 4, 5}) == 0);
  CHECK(pool.held() == 3);
  CHECK(Serve(pool, {1, 2, 3, 4, 5}) == 3);
}

TEST_CASE("BlockPool: a block released without a key is allocated next", "[unit]") {
  BlockPool pool(3);
  Serve(pool, {1, 2});
  const auto block = pool.Allocate();
  REQUIRE(block.has_value());
  pool.Release(std::vector<std::uint32_t>{*block});
  CHECK(pool.Allocate() == block);
  CHECK(pool.evictions() == 0);
}

TEST_CASE("BlockPool: a key that another block holds can't be assigned twice", "[unit]") {
  BlockPool pool(3);
  Serve(pool, {1});
  const auto block = pool.Allocate();
  REQUIRE(block.has_value());
  CHECK_FALSE(pool.Assign(*block, Key(1)));
  CHECK(pool.Assign(*block, Key(2)));
  CHECK(pool.held() == 2);
}

TEST_CASE("BlockPool: stays closed under prefixes over many random requests", "[unit]") {
  BlockPool pool(50);
  Random random(3);
  std::vector<std::vector<std::uint64_t>> prefixes;
  for (std::uint64_t p = 0; p < 20; ++p) {
    // Prefixes share a stem of p % 4 blocks, then go their own way.
    std::vector<std::uint64_t> ids;
    for (std::uint64_t i = 0; i < 12; ++i) ids.push_back(i < p % 4 ? i : 100 * (p + 1) + i);
    prefixes.push_back(ids);
  }
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::uint64_t> ids = prefixes[random.Below(prefixes.size())];
    ids.resize(random.Between(1, ids.size()));
    Serve(pool, ids);
    REQUIRE(pool.held() <= 50);
    const auto& other = prefixes[random.Below(prefixes.size())];
    std::vector<std::uint32_t> pinned;
    bool gap = false;
    for (const std::uint64_t id : other) {
      const auto block = pool.PinHeld(Key(id));
      REQUIRE_FALSE((block && gap));
      gap = gap || !block;
      if (block) pinned.push_back(*block);
    }
    pool.Release(pinned);
  }
}

TEST_CASE("Block content: a block holds its own key and no other, and one changed byte shows", "[unit]") {
  std::vector<std::uint64_t> words(64);
  const std::span<std::byte> block = std::as_writable_bytes(std::span(words));
  FillBlock(Key(1), block);
  CHECK(BlockHolds(Key(1), block));
  CHECK_FALSE(BlockHolds(Key(2), block));
  CHECK_FALSE(BlockHolds({Key(1).lo, Key(2).hi}, block));
  block[509] ^= std::byte{1};
  CHECK_FALSE(BlockHolds(Key(1), block));
  block[509] ^= std::byte{1};
  std::rotate(words.begin(), words.begin() + 1, words.end());
  CHECK_FALSE(BlockHolds(Key(1), block));
}
