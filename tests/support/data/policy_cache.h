// A cache of blocks for tests of eviction policies. It drives a policy as a real cache does, and
// keeps track of resident blocks in a slow and obvious way.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "daemon/policy/eviction_policy.h"
#include "tests/catch.h"
#include "tests/support/data/random.h"

namespace kvm::test {

// Prefixes that fork: a request is a prefix of what was asked before, and new blocks behind it.
class PrefixTraffic {
 public:
  PrefixTraffic(std::uint64_t seed, std::uint64_t max_new) : random_(seed), max_new_(max_new) {}

  std::vector<policy::Key> Next() {
    std::vector<policy::Key> path;
    if (!paths_.empty() && !random_.OneIn(4)) {
      // Mostly recent ones.
      const std::uint64_t back =
          random_.OneIn(3) ? random_.Below(paths_.size()) : random_.Below(std::min<std::uint64_t>(paths_.size(), 12));
      path = paths_[paths_.size() - 1 - static_cast<std::size_t>(back)];
      if (random_.OneIn(3)) path.resize(static_cast<std::size_t>(random_.Below(path.size() + 1)));
    }
    for (std::uint64_t added = random_.Below(max_new_) + (path.empty() ? 1 : 0); added > 0; --added) path.push_back(++last_key_);
    paths_.push_back(path);
    return path;
  }

 private:
  Random random_;
  std::uint64_t max_new_;
  policy::Key last_key_ = 0;
  std::vector<std::vector<policy::Key>> paths_;
};

struct PolicyCache {
  PolicyCache(policy::EvictionPolicy& its_policy, std::uint32_t its_capacity) : policy(its_policy), capacity(its_capacity) {
    for (std::uint32_t slot = capacity; slot-- > 0;) free.push_back(slot);
  }

  std::size_t LeadingHits(const std::vector<policy::Key>& path) const {
    std::size_t hits = 0;
    while (hits < path.size() && slot_of.contains(path[hits])) ++hits;
    return hits;
  }

  // Makes one request, with the calls that the policy's interface prescribes.
  void Request(const std::vector<policy::Key>& path, bool announce = true) {
    std::vector<policy::Block> blocks;
    for (const policy::Key key : path) {
      blocks.push_back({key, blocks.empty() ? policy::kNoKey : blocks.back().key, static_cast<std::uint32_t>(blocks.size())});
      parent_of[key] = blocks.back().parent;
    }
    if (announce) policy.OnRequest(blocks);
    if (policy.order() == policy::Order::kLastToFirst) std::reverse(blocks.begin(), blocks.end());
    for (const policy::Block& block : blocks) Use(block);
  }

  void Use(const policy::Block& block) {
    if (const auto at = slot_of.find(block.key); at != slot_of.end()) {
      if (on_hit) on_hit(block.key);
      return policy.OnHit(at->second);
    }
    if (free.empty()) {
      const policy::Slot victim = Choose();
      REQUIRE(key_in.contains(victim));
      if (on_victim) on_victim(victim);
      Erase(victim);
    }
    const policy::Slot slot = free.back();
    free.pop_back();
    slot_of[block.key] = slot;
    key_in[slot] = block.key;
    policy.OnInsert(slot, block);
    if (on_insert) on_insert(block.key);
    REQUIRE(key_in.size() <= capacity);
  }

  policy::Slot Choose() {
    if (!may_leave) return policy.ChooseVictim();
    const policy::Slot victim = policy.ChooseVictimAmong([this](policy::Slot slot) { return may_leave(key_in.at(slot)); });
    if (on_choice_among) on_choice_among(victim);
    return victim == policy::kNoSlot ? policy.ChooseVictim() : victim;
  }

  void Erase(policy::Slot slot) {
    policy.OnErase(slot);
    slot_of.erase(key_in.at(slot));
    key_in.erase(slot);
    free.push_back(slot);
  }

  bool HasResidentChild(policy::Key key) const {
    return std::any_of(key_in.begin(), key_in.end(), [&](const auto& entry) { return parent_of.at(entry.second) == key; });
  }

  policy::EvictionPolicy& policy;
  std::uint32_t capacity;
  std::vector<policy::Slot> free;
  std::map<policy::Key, policy::Slot> slot_of;
  std::map<policy::Slot, policy::Key> key_in;
  std::map<policy::Key, policy::Key> parent_of;
  std::function<void(policy::Key)> on_hit, on_insert;
  std::function<void(policy::Slot)> on_victim;
  // If set, victims are chosen among blocks for which it is true, if there are any
  std::function<bool(policy::Key)> may_leave;
  std::function<void(policy::Slot)> on_choice_among;
};

// From time to time a block is erased, as if its owner had reused it.
inline void EraseOne(PolicyCache& cache, Random& random, const std::function<void(policy::Key)>& erased = {}) {
  if (cache.key_in.empty() || !random.OneIn(8)) return;
  auto at = cache.key_in.begin();
  std::advance(at, static_cast<std::ptrdiff_t>(random.Below(cache.key_in.size())));
  const auto [slot, key] = *at;
  cache.Erase(slot);
  if (erased) erased(key);
}

}  // namespace kvm::test
