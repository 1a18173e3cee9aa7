// Evicts the leaf whose slot is worth least, in expected hits per slot and time (reuse_model.h).
//
// Only leaves leave: a block without its parent can't be hit, so a prefix is cut from its end.
// Blocks without a resident parent leave first of all. The policy remembers four times the capacity
// of blocks that left (at least 16,384), to see when they are asked for again and to recognise a
// conversation that comes back. This takes about 400 bytes a slot in all, more for caches below
// 4,096 blocks.
//
// The guard (lru_guard.h) keeps a loss against LRU small, though not impossible: it compares the
// policy with an LRU cache of its capacity, which the order of use (use_order.h) keeps, and at
// times has blocks leave in LRU's order. The guard and growth need OnRequest; everything else works
// without it.
//
// Invariants:
//   P1. A resident block is in exactly one leaf list if it has no resident child, else in none.
//   P2. A known block has one node. A node with resident children is never dropped.
#pragma once

#include <vector>

#include "daemon/policy/eviction_policy.h"
#include "daemon/policy/hit_density_leaves.h"
#include "daemon/policy/hit_density_nodes.h"
#include "daemon/policy/huge_pages.h"
#include "daemon/policy/key_table.h"
#include "daemon/policy/linked_list.h"
#include "daemon/policy/lru_guard.h"
#include "daemon/policy/reuse_model.h"
#include "daemon/policy/use_order.h"

namespace kvm::policy {

class HitDensityPolicy final : public EvictionPolicy {
 public:
  explicit HitDensityPolicy(std::uint32_t capacity);
  HitDensityPolicy(const HitDensityPolicy&) = delete;
  HitDensityPolicy& operator=(const HitDensityPolicy&) = delete;

  std::string_view name() const noexcept override { return "hit-density"; }
  Order order() const noexcept override { return Order::kFirstToLast; }
  void OnRequest(std::span<const Block> path) override;
  void OnInsert(Slot slot, const Block& block) override;
  void OnHit(Slot slot) override;
  void OnErase(Slot slot) override;
  Slot ChooseVictim() override;
  Slot ChooseVictimAmong(const Evictable& evictable) override;

  // For tests.
  std::uint64_t hits() const noexcept { return guard_.hits(); }
  // Of an LRU cache of this capacity
  std::uint64_t lru_hits() const noexcept { return guard_.lru_hits(); }
  bool follows_lru() const noexcept { return guard_.follows_lru(); }
  bool IsLeaf(Slot slot) const { return nodes_[node_of_[slot]].run != kNil; }
  // Of a leaf: the least one leaves, unless LRU is followed
  double Worth(Slot slot) const { return leaves_.Worth(node_of_[slot]); }

 private:
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

  bool Sampled(std::uint32_t node) const noexcept { return (node & sample_mask_) == 0; }

  void FindUse(Key key, Key parent, Use& use);
  std::uint32_t MakeNode(Key key, std::uint32_t parent);
  void DropOldestRemembered(std::uint32_t parent);
  void FetchNextDropped();
  void Count(const Use& use, bool known);
  void UpdateModel();

  const std::uint32_t capacity_;
  const std::uint32_t unit_;  // uses in a unit of age
  std::uint32_t sample_mask_ = 0;
  std::uint64_t uses_ = 0, next_update_ = 0, last_update_ = 0;
  std::uint32_t now_ = 0, aged_at_ = 0;  // in units
  std::uint64_t next_unit_ = 0;          // uses

  HitDensityNodes nodes_;
  HugeVector<std::uint32_t> node_of_;  // [capacity]
  KeyTable table_;
  ListEnds free_, remembered_;
  std::uint32_t fetched_ = kNil;  // how far FetchNextDropped has come in remembered_
  LruGuard guard_;
  UseOrder by_use_;
  ReuseModel model_;
  HitDensityLeaves leaves_;

  // The request that is being reported.
  std::vector<Asked> path_;
  std::size_t path_at_ = 0;
  std::uint8_t growth_ = 0;
  std::uint32_t last_used_ = kNil;

  std::uint32_t chosen_ = kNil;  // node, by ChooseVictim
};

}  // namespace kvm::policy
