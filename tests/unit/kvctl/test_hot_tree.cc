// kvctl hot: ends of imports are added up along the parents that the index names.
#include <map>

#include "client/kvctl/views/hot_tree.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

// Two conversations that share blocks 1 and 2: 1 - 2 - 3 - 4 and 1 - 2 - 5.
std::map<std::uint64_t, IndexedBlock> Tree() {
  const auto block = [](std::uint64_t lo, std::uint64_t parent, std::uint32_t depth) { return IndexedBlock{parent, depth, {lo, 0}}; };
  return {{1, block(1, 0, 0)}, {2, block(2, 1, 1)}, {3, block(3, 2, 2)}, {4, block(4, 3, 3)}, {5, block(5, 2, 2)}};
}

std::vector<HotPrefixRow> Rows(const std::vector<HotEnd>& ends, const std::map<std::uint64_t, IndexedBlock>& tree, std::size_t limit = 0) {
  const auto index = [&](std::uint64_t lo) -> std::optional<IndexedBlock> {
    const auto found = tree.find(lo);
    return found == tree.end() ? std::nullopt : std::optional(found->second);
  };
  return HottestPrefixes(ends, index, limit);
}

}  // namespace

TEST_CASE("Hot: a prefix that prompts share has the uses of all that go on from it", "[unit]") {
  const auto rows = Rows({{{4, 0}, 3, 10, "m"}, {{5, 0}, 2, 3, "m"}}, Tree());
  REQUIRE(rows.size() == 3);
  CHECK(rows[0].key == BlockKey{2, 0});
  CHECK(rows[0].uses == 13);
  CHECK(rows[0].ends == 0);
  CHECK(rows[0].branches == 2);
  CHECK(rows[0].model == "m");
  CHECK(rows[1].key == BlockKey{4, 0});
  CHECK(rows[1].uses == 10);
  CHECK(rows[1].ends == 10);
  CHECK(rows[2].key == BlockKey{5, 0});
  CHECK(Rows({{{4, 0}, 3, 10, "m"}, {{5, 0}, 2, 3, "m"}}, Tree(), 1).size() == 1);
}

TEST_CASE("Hot: an end that is not published any more stands for itself", "[unit]") {
  const auto rows = Rows({{{9, 9}, 7, 2, "m"}}, Tree());
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].depth == 7);
  CHECK_FALSE(rows[0].indexed);
}

TEST_CASE("Hot: parents that form a ring, or contradict their depth, end the way", "[unit]") {
  const std::map<std::uint64_t, IndexedBlock> ring{{1, {2, 5, {1, 0}}}, {2, {1, 5, {2, 0}}}};
  const auto rows = Rows({{{1, 0}, 0xFFFFFFFF, 1, "m"}}, ring);
  REQUIRE(rows.size() == 1);
  CHECK(rows[0].key == BlockKey{1, 0});
}
