// Blocks of the host cache and the policy that chooses among them.
#include <set>

#include "daemon/tier_blocks.h"
#include "tests/catch.h"
#include "tests/support/policy_tier.h"

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
struct Tier {
  Tier(policy::PolicyKind kind, std::uint32_t slots, std::uint32_t most_chunks) : blocks(kind, slots, most_chunks) {}

  std::optional<Slot> Take(const PublishRecord& record) {
    for (const std::uint32_t position : chunks) {
      if (const auto slot = blocks.Grant(position, record)) return slot;
    }
    const std::optional<Slot> victim = blocks.ChooseVictim(chunks, record);
    if (!victim) return std::nullopt;
    REQUIRE(blocks[*victim].state == TierSlot::State::kHeld);
    blocks.Free(*victim);
    return blocks.Grant(blocks.PositionOf(*victim), record);
  }
  void Store(const std::vector<policy::Key>& path, std::uint64_t now_ms) {
    std::vector<Slot> stored;
    for (std::uint32_t depth = 0; depth < path.size(); ++depth) {
      const PublishRecord record = Record(path[depth], depth == 0 ? 0 : path[depth - 1], depth);
      if (blocks.Find(record.key)) continue;
      const std::optional<Slot> slot = Take(record);
      if (!slot) break;  // a request larger than the tier
      blocks.Hold(*slot);
      stored.push_back(*slot);
    }
    blocks.Use(stored, now_ms, false);
  }
  bool Holds(policy::Key key) { return blocks.Find({key, ~key}).has_value(); }

  TierBlocks blocks;
  std::vector<std::uint32_t> chunks;
};

TEST_CASE("Tier blocks: a prefix is cut from its end, whatever the policy", "[unit]") {
  for (const policy::PolicyKind kind : {policy::PolicyKind::kLru, policy::PolicyKind::kHitDensity}) {
    INFO(policy::PolicyName(kind));
    Tier tier(kind, 8, 4);
    for (int i = 0; i < 4; ++i) tier.chunks.push_back(tier.blocks.AddChunk());
    Random random(3);
    std::map<policy::Key, policy::Key> parent_of;
    PrefixTraffic traffic(5, 5);
    std::uint64_t now_ms = 5000;
    for (int request = 0; request < 2000; ++request, now_ms += 10) {
      std::vector<policy::Key> path = traffic.Next();
      if (path.size() > 16) path.resize(16);
      for (std::size_t i = 0; i < path.size(); ++i) parent_of[path[i]] = i == 0 ? 0 : path[i - 1];
      // Told of all of it, as whoever computes the next block of a prefix has used the ones before.
      std::vector<Slot> resident;
      for (const policy::Key key : path) {
        if (const auto slot = tier.blocks.Find({key, ~key})) resident.push_back(*slot);
      }
      tier.blocks.Use(resident, now_ms, true);
      tier.Store(path, now_ms);
      for (const auto& [key, parent] : parent_of) {
        if (parent == 0 || !tier.Holds(key)) continue;
        INFO("request " << request << ", block " << key << " without " << parent);
        REQUIRE(tier.Holds(parent));
      }
    }
    CHECK(tier.blocks.held() == 32);
  }
}

TEST_CASE("Tier blocks: only blocks of the chunks that are named leave", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    INFO(policy::PolicyName(kind));
    Tier theirs(kind, 4, 8);
    theirs.chunks = {theirs.blocks.AddChunk(), theirs.blocks.AddChunk(), theirs.blocks.AddChunk()};
    theirs.Store({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 1000);
    const std::vector<std::uint32_t> own{theirs.chunks[1]};
    std::set<Slot> left;
    for (int i = 0; i < 4; ++i) {
      const std::optional<Slot> victim = theirs.blocks.ChooseVictim(own, {});
      REQUIRE(victim.has_value());
      CHECK(theirs.blocks.PositionOf(*victim) == own[0]);
      CHECK(left.insert(*victim).second);
      theirs.blocks.Free(*victim);
    }
    CHECK_FALSE(theirs.blocks.ChooseVictim(own, {}).has_value());
    CHECK(theirs.blocks.held() == 8);
  }
}

TEST_CASE("Tier blocks: growing forgets neither blocks nor the order of their use", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    INFO(policy::PolicyName(kind));
    Tier tier(kind, 4, 64);
    policy::Key next = 1;
    for (std::uint64_t chunk = 0; chunk < 20; ++chunk) {
      tier.chunks.push_back(tier.blocks.AddChunk());
      tier.Store({next, next + 1, next + 2, next + 3}, 10'000 * (chunk + 1));
      next += 4;
    }
    CHECK(tier.blocks.held() == 80);
    for (policy::Key key = 1; key < next; ++key) CHECK(tier.Holds(key));
    if (kind != policy::PolicyKind::kLru) continue;
    for (policy::Key chunk = 0; chunk < 20; ++chunk) {
      for (policy::Key i = 4; i > 0; --i) {  // last block first
        const std::optional<Slot> victim = tier.blocks.ChooseVictim(tier.chunks, {});
        REQUIRE(victim.has_value());
        CHECK(tier.blocks[*victim].record.key.lo == chunk * 4 + i);
        tier.blocks.Free(*victim);
      }
    }
  }
}

TEST_CASE("Tier blocks: a chunk that goes takes its blocks along and leaves its place to the next", "[unit]") {
  Tier tier(policy::PolicyKind::kHitDensity, 4, 8);
  tier.chunks = {tier.blocks.AddChunk(), tier.blocks.AddChunk()};
  tier.Store({1, 2, 3, 4, 5, 6}, 1000);
  tier.blocks.RemoveChunk(tier.chunks[0]);
  CHECK(tier.blocks.held() == 2);
  CHECK_FALSE(tier.Holds(1));
  CHECK(tier.Holds(5));
  CHECK(tier.blocks.AddChunk() == tier.chunks[0]);
  CHECK(tier.blocks.free_in(tier.chunks[0]) == 4);
}

TEST_CASE("Tier blocks: parents that name each other, or themselves, end nowhere", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    Tier tier(kind, 8, 1);
    tier.chunks = {tier.blocks.AddChunk()};
    std::vector<Slot> slots;
    for (const auto& [key, parent, depth] : {std::tuple(1, 2, 5), std::tuple(2, 1, 5), std::tuple(3, 3, 9), std::tuple(4, 1, 0xFFFFFFF)}) {
      slots.push_back(*tier.blocks.Grant(0, Record(key, parent, depth)));
      tier.blocks.Hold(slots.back());
    }
    tier.blocks.Use(slots, 1000, false);
    tier.blocks.Use(slots, 9000, true);
    for (int i = 0; i < 4; ++i) {
      const std::optional<Slot> victim = tier.blocks.ChooseVictim(tier.chunks, {});
      REQUIRE(victim.has_value());
      tier.blocks.Free(*victim);
    }
    CHECK(tier.blocks.held() == 0);
  }
}

}  // namespace
}  // namespace kvm::daemon
