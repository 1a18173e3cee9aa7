// The blocks that HitDensityPolicy knows, resident or remembered: one node each, by index.
#pragma once

#include <cstdint>

#include "daemon/policy/eviction_policy.h"
#include "daemon/policy/huge_pages.h"
#include "daemon/policy/linked_list.h"
#include "daemon/policy/reuse_model.h"

namespace kvm::policy {

struct alignas(64) HitDensityNode {  // a line of memory
  Key key = kNoKey;                  // kNoKey: not in use
  std::uint32_t parent = kNil;       // of a resident block; kNil: none, or not known
  std::uint32_t children = 0;        // resident ones
  Slot slot = kNoSlot;               // kNoSlot: remembered only
  std::uint32_t used_at = 0;         // in units
  std::uint32_t run = kNil;          // of the leaves; kNil: it is none
  Links links;                       // in that run, of the remembered ones or of the free ones
  Links use;                         // in the order of use
  std::uint8_t turns = 0;            // saturating
  std::uint8_t forks = 0;            // different children seen, saturating
  std::uint8_t growth = 0;           // level
  bool first = false;                // of its prefix
  bool end = false;
  bool in_lru = false;

  std::uint32_t Class() const { return ReuseModel::Class(ReuseModel::TurnLevel(turns), growth, end); }
  std::uint32_t Age(std::uint32_t now) const { return ReuseModel::Age(now - used_at); }
};

class HitDensityNodes {
 public:
  // Room for `most` nodes, whose memory is touched as they are made.
  explicit HitDensityNodes(std::uint64_t most) : most_(most) { nodes_.reserve(most); }

  std::uint64_t most() const noexcept { return most_; }
  std::uint64_t made() const noexcept { return nodes_.size(); }
  // Precondition: fewer than most() are made.
  std::uint32_t Make() {
    nodes_.emplace_back();
    return static_cast<std::uint32_t>(nodes_.size() - 1);
  }
  HitDensityNode& operator[](std::uint32_t node) noexcept { return nodes_[node]; }
  const HitDensityNode& operator[](std::uint32_t node) const noexcept { return nodes_[node]; }

  bool Resident(std::uint32_t node) const { return node != kNil && nodes_[node].slot != kNoSlot; }
  // Always inlined: GCC treats a function that only prefetches as one without effect, and drops the
  // call.
  [[gnu::always_inline]] void Fetch(std::uint32_t node) const {
    if (node != kNil) __builtin_prefetch(&nodes_[node], 1);
  }

  auto LinksOf() {
    return [this](std::uint32_t node) -> Links& { return nodes_[node].links; };
  }
  auto UseLinksOf() {
    return [this](std::uint32_t node) -> Links& { return nodes_[node].use; };
  }
  auto KeyOf() const {
    return [this](std::uint32_t node) { return nodes_[node].key; };
  }

 private:
  const std::uint64_t most_;
  HugeVector<HitDensityNode> nodes_;
};

}  // namespace kvm::policy
