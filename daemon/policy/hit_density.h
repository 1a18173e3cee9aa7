// Evicts the leaf whose slot is worth least, in expected hits per slot and time (reuse_model.h).
//
// Only leaves leave: a block without its parent can't be hit, so a prefix is cut from its end.
// Blocks without a resident parent leave first of all. The policy remembers four times the capacity
// of blocks that left (at least 16,384), to see when they are asked for again and to recognise a
// conversation that comes back. This takes about 400 bytes a slot in all, more for caches below
// 4,096 blocks.
//
// The guard keeps a loss against LRU small, though not impossible. All known blocks, resident or
// remembered, are in the order of their last use; the first `capacity` of them are what an LRU
// cache would hold. The policy counts the hits of both caches for each request, and also hits on
// blocks that only the LRU cache would hold. When LRU's lead and the hits to expect from those
// blocks exceed 0.0015 of the blocks asked for, blocks leave in LRU's order until the sum is less
// again. The guard and growth need OnRequest; everything else works without it.
//
// Invariants:
//   P1. A resident block is in exactly one leaf list if it has no resident child, else in none.
//   P2. A known block has one node. A node with resident children is never dropped.
//   P3. Nothing resident is older than resident_back_ in the order of use.
#pragma once

#include <vector>

#include "daemon/policy/eviction_policy.h"
#include "daemon/policy/huge_pages.h"
#include "daemon/policy/key_table.h"
#include "daemon/policy/linked_list.h"
#include "daemon/policy/ranked_lists.h"
#include "daemon/policy/reuse_model.h"

namespace kvm::policy {

class HitDensityPolicy final : public EvictionPolicy {
 public:
  explicit HitDensityPolicy(std::uint32_t capacity);

  std::string_view name() const noexcept override { return "hit-density"; }
  Order order() const noexcept override { return Order::kFirstToLast; }
  void OnRequest(std::span<const Block> path) override;
  void OnInsert(Slot slot, const Block& block) override;
  void OnHit(Slot slot) override;
  void OnErase(Slot slot) override;
  Slot ChooseVictim() override;
  Slot ChooseVictimAmong(const Evictable& evictable) override;

  // For tests and for those who look.
  std::uint64_t hits() const noexcept { return hits_; }
  std::uint64_t lru_hits() const noexcept { return lru_hits_; }  // of an LRU cache of this capacity
  bool follows_lru() const noexcept { return follow_lru_; }
  bool IsLeaf(Slot slot) const { return nodes_[node_of_[slot]].run != kNil; }
  double Worth(Slot slot) const;  // of a leaf: the least one leaves, unless LRU is followed

 private:
  static constexpr std::uint32_t kRootless = 0;  // leaves whose parent is not resident
  static constexpr std::uint32_t kLists = 1 + ReuseModel::kClasses * ReuseModel::kAges;

  struct alignas(64) Node {       // a line of memory
    Key key = kNoKey;             // kNoKey: not in use
    std::uint32_t parent = kNil;  // of a resident block; kNil: none, or not known
    std::uint32_t children = 0;   // resident ones
    Slot slot = kNoSlot;          // kNoSlot: remembered only
    std::uint32_t used_at = 0;    // in units
    std::uint32_t run = kNil;     // of leaves_; kNil: it is none
    Links links;                  // in that run, remembered_ or free_
    Links use;                    // in by_use_
    std::uint8_t turns = 0;       // saturating
    std::uint8_t forks = 0;       // different children seen, saturating
    std::uint8_t growth = 0;      // level
    bool first = false;           // of its prefix
    bool end = false;
    bool in_lru = false;
  };

  // A block of the request that is being reported.
  struct Asked {
    Key key = kNoKey;
    std::uint32_t node = kNil;
  };

  // One use of a block.
  struct Use {
    std::uint32_t node = kNil;
    std::uint32_t parent = kNil;
    bool end = true;  // of the request; without OnRequest, until a child is used
  };

  auto LinksOf() {
    return [this](std::uint32_t node) -> Links& { return nodes_[node].links; };
  }
  auto UseLinksOf() {
    return [this](std::uint32_t node) -> Links& { return nodes_[node].use; };
  }
  auto KeyOf() const {
    return [this](std::uint32_t node) { return nodes_[node].key; };
  }
  void Fetch(std::uint32_t node) const {
    if (node != kNil) __builtin_prefetch(&nodes_[node], 1);
  }
  bool Resident(std::uint32_t node) const { return node != kNil && nodes_[node].slot != kNoSlot; }
  std::uint32_t ClassOf(const Node& node) const { return ReuseModel::Class(ReuseModel::TurnLevel(node.turns), node.growth, node.end); }
  std::uint32_t AgeOf(const Node& node) const { return ReuseModel::Age(now_ - node.used_at); }
  bool Sampled(std::uint32_t node) const noexcept { return (node & sample_mask_) == 0; }

  void FindUse(Key key, Key parent, Use& use);
  std::uint32_t MakeNode(Key key, std::uint32_t parent);
  void DropOldestRemembered(std::uint32_t parent);
  void FetchNextDropped();
  void Count(const Use& use, bool known);
  void MoveToFrontOfUse(const Use& use, bool known);
  void RemoveFromUse(std::uint32_t node);
  void Enlist(std::uint32_t node, bool front);
  void Delist(std::uint32_t node);
  void MoveAgedLeaves();
  void UpdateModel();
  void UpdateGuard(std::uint64_t leading, std::uint64_t leading_lru, std::uint64_t blocks);
  double WorthOfList(std::uint32_t list) const;
  double BlocksOfRequest() const;
  std::uint32_t OldestResident();
  std::uint32_t WorstLeaf();
  std::uint32_t WorstLeafAmong(const Evictable& evictable);
  std::uint32_t OldestAmong(const Evictable& evictable, bool leaves_only);

  const std::uint32_t capacity_;
  const std::uint32_t unit_;  // uses in a unit of age
  std::uint32_t sample_mask_ = 0;
  std::uint64_t uses_ = 0, next_update_ = 0, last_update_ = 0;
  std::uint32_t now_ = 0, aged_at_ = 0;  // in units
  std::uint64_t next_unit_ = 0;          // uses

  HugeVector<Node> nodes_;
  HugeVector<std::uint32_t> node_of_;  // [capacity]
  KeyTable table_;
  ListEnds free_, remembered_, by_use_;
  std::uint32_t fetched_ = kNil;  // how far FetchNextDropped has come in remembered_
  std::uint32_t resident_back_ = kNil;
  std::uint32_t lru_back_ = kNil, lru_size_ = 0;
  RankedLists leaves_;
  ReuseModel model_;

  // The request that is being reported.
  std::vector<Asked> path_;
  std::size_t path_at_ = 0;
  std::uint8_t growth_ = 0;
  std::uint32_t last_used_ = kNil;

  std::uint64_t requests_ = 0, asked_ = 0, hits_ = 0, lru_hits_ = 0;
  double lead_ = 0;           // hits more than LRU, at most capacity
  std::uint64_t absent_ = 0;  // blocks in the LRU cache that are not here
  // Uses of blocks that the LRU cache had, blocks that left it
  double lru_used_ = 0, lru_left_ = 0;
  // What became of those: used while LRU had them, or left LRU as well
  double missed_ = 0, spared_ = 0;
  bool follow_lru_ = false;
  std::uint32_t chosen_ = kNil;  // node, by ChooseVictim
};

}  // namespace kvm::policy
