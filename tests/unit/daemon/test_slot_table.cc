// Blocks of the host cache and the policy that chooses among them.
#include <set>

#include "daemon/host_cache/slot_table.h"
#include "tests/catch.h"
#include "tests/support/data/policy_cache.h"

namespace kvm::daemon {
namespace {

using policy::Slot;
using test::PrefixTraffic;
using test::Random;

PublishRecord Record(std::uint64_t key, std::uint64_t parent, std::uint32_t depth) {
  PublishRecord record;
  record.key = {key, ~key};
  record.parent_lo = parent;
  record.depth = depth;
  return record;
}

// Stores prefixes as a worker would, evicting where there is no room.
struct Cache {
  Cache(policy::PolicyKind kind, std::uint32_t slots, std::uint32_t most_slabs) : blocks(kind, slots, most_slabs, freer) {}

  std::optional<Slot> Take(const PublishRecord& record) {
    for (const std::uint32_t position : slabs) {
      if (const auto slot = blocks.Grant(position, record)) return slot;
    }
    const std::optional<Slot> victim = blocks.ChooseVictim(slabs, record);
    if (!victim) return std::nullopt;
    REQUIRE(blocks[*victim].state == CacheSlot::State::kStored);
    blocks.Free(*victim);
    return blocks.Grant(blocks.PositionOf(*victim), record);
  }
  void Store(const std::vector<policy::Key>& path, std::uint64_t now_ms) {
    std::vector<Slot> stored;
    for (std::uint32_t depth = 0; depth < path.size(); ++depth) {
      const PublishRecord record = Record(path[depth], depth == 0 ? 0 : path[depth - 1], depth);
      if (blocks.Find(record.key)) continue;
      const std::optional<Slot> slot = Take(record);
      if (!slot) break;  // a request larger than the cache
      blocks.Commit(*slot);
      stored.push_back(*slot);
    }
    blocks.Use(stored, now_ms, false);
  }
  bool Holds(policy::Key key) { return blocks.Find({key, ~key}).has_value(); }

  FreeNow freer;
  SlotTable blocks;
  std::vector<std::uint32_t> slabs;
};

TEST_CASE("Slot table: a prefix is evicted from its end, with every policy", "[unit]") {
  for (const policy::PolicyKind kind : {policy::PolicyKind::kLru, policy::PolicyKind::kHitDensity}) {
    INFO(policy::PolicyName(kind));
    Cache cache(kind, 8, 4);
    for (int i = 0; i < 4; ++i) cache.slabs.push_back(cache.blocks.AddSlab());
    Random random(3);
    std::map<policy::Key, policy::Key> parent_of;
    PrefixTraffic traffic(5, 5);
    std::uint64_t now_ms = 5000;
    for (int request = 0; request < 2000; ++request, now_ms += 10) {
      std::vector<policy::Key> path = traffic.Next();
      if (path.size() > 16) path.resize(16);
      for (std::size_t i = 0; i < path.size(); ++i) parent_of[path[i]] = i == 0 ? 0 : path[i - 1];
      // The policy is told of the whole prefix, since a worker that computes its next block has
      // used the blocks before.
      std::vector<Slot> resident;
      for (const policy::Key key : path) {
        if (const auto slot = cache.blocks.Find({key, ~key})) resident.push_back(*slot);
      }
      cache.blocks.Use(resident, now_ms, true);
      cache.Store(path, now_ms);
      for (const auto& [key, parent] : parent_of) {
        if (parent == 0 || !cache.Holds(key)) continue;
        INFO("request " << request << ", block " << key << " without " << parent);
        REQUIRE(cache.Holds(parent));
      }
    }
    CHECK(cache.blocks.stored() == 32);
  }
}

TEST_CASE("Slot table: only blocks of the slabs that are named leave", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    INFO(policy::PolicyName(kind));
    Cache theirs(kind, 4, 8);
    theirs.slabs = {theirs.blocks.AddSlab(), theirs.blocks.AddSlab(), theirs.blocks.AddSlab()};
    theirs.Store({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 1000);
    const std::vector<std::uint32_t> own{theirs.slabs[1]};
    std::set<Slot> left;
    for (int i = 0; i < 4; ++i) {
      const std::optional<Slot> victim = theirs.blocks.ChooseVictim(own, {});
      REQUIRE(victim.has_value());
      CHECK(theirs.blocks.PositionOf(*victim) == own[0]);
      CHECK(left.insert(*victim).second);
      theirs.blocks.Free(*victim);
    }
    CHECK_FALSE(theirs.blocks.ChooseVictim(own, {}).has_value());
    CHECK(theirs.blocks.stored() == 8);
  }
}

TEST_CASE("Slot table: growing keeps the blocks and the order of their use", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    INFO(policy::PolicyName(kind));
    Cache cache(kind, 4, 64);
    policy::Key next = 1;
    for (std::uint64_t slab = 0; slab < 20; ++slab) {
      cache.slabs.push_back(cache.blocks.AddSlab());
      cache.Store({next, next + 1, next + 2, next + 3}, 10'000 * (slab + 1));
      next += 4;
    }
    CHECK(cache.blocks.stored() == 80);
    for (policy::Key key = 1; key < next; ++key) CHECK(cache.Holds(key));
    if (kind != policy::PolicyKind::kLru) continue;
    for (policy::Key slab = 0; slab < 20; ++slab) {
      for (policy::Key i = 4; i > 0; --i) {  // last block first
        const std::optional<Slot> victim = cache.blocks.ChooseVictim(cache.slabs, {});
        REQUIRE(victim.has_value());
        CHECK(cache.blocks[*victim].record.key.lo == slab * 4 + i);
        cache.blocks.Free(*victim);
      }
    }
  }
}

TEST_CASE("Slot table: a removed slab's blocks are gone, and the next slab gets its position", "[unit]") {
  Cache cache(policy::PolicyKind::kHitDensity, 4, 8);
  cache.slabs = {cache.blocks.AddSlab(), cache.blocks.AddSlab()};
  cache.Store({1, 2, 3, 4, 5, 6}, 1000);
  cache.blocks.RemoveSlab(cache.slabs[0]);
  CHECK(cache.blocks.stored() == 2);
  CHECK_FALSE(cache.Holds(1));
  CHECK(cache.Holds(5));
  CHECK(cache.blocks.AddSlab() == cache.slabs[0]);
  CHECK(cache.blocks.free_in(cache.slabs[0]) == 4);
}

TEST_CASE("Slot table: parents that name each other, or themselves, do not loop for ever", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    Cache cache(kind, 8, 1);
    cache.slabs = {cache.blocks.AddSlab()};
    std::vector<Slot> slots;
    for (const auto& [key, parent, depth] : {std::tuple(1, 2, 5), std::tuple(2, 1, 5), std::tuple(3, 3, 9), std::tuple(4, 1, 0xFFFFFFF)}) {
      slots.push_back(*cache.blocks.Grant(0, Record(key, parent, depth)));
      cache.blocks.Commit(slots.back());
    }
    cache.blocks.Use(slots, 1000, false);
    cache.blocks.Use(slots, 9000, true);
    for (int i = 0; i < 4; ++i) {
      const std::optional<Slot> victim = cache.blocks.ChooseVictim(cache.slabs, {});
      REQUIRE(victim.has_value());
      cache.blocks.Free(*victim);
    }
    CHECK(cache.blocks.stored() == 0);
  }
}

}  // namespace
}  // namespace kvm::daemon
