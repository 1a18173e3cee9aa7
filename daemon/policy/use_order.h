// All blocks that HitDensityPolicy knows in the order of their last use. The first `capacity` of
// them are what an LRU cache would hold, whether they are resident or not.
#pragma once

#include <cstdint>

#include "daemon/policy/hit_density_nodes.h"
#include "daemon/policy/lru_guard.h"

namespace kvm::policy {

class UseOrder {
 public:
  // `nodes` and `guard` have to outlive it. `guard` is told what the LRU cache would have had.
  UseOrder(HitDensityNodes& nodes, LruGuard& guard, std::uint32_t capacity) : nodes_(nodes), guard_(guard), capacity_(capacity) {}

  // `node` was used: it goes behind `before`, the block before it in the same request, else (kNil)
  // to the front: as if blocks were used from last to first. `known`: it is in the order already.
  void Used(std::uint32_t node, std::uint32_t before, bool known);
  void Remove(std::uint32_t node);
  void MoveToBack(std::uint32_t node);

  // The resident block that was not used for longest; kNil: none is resident.
  std::uint32_t OldestResident();
  // The oldest of those that `evictable` allows, of the first kMaxVictimsLookedAt; kNil: none of
  // them.
  std::uint32_t OldestAmong(const Evictable& evictable, bool leaves_only);

 private:
  HitDensityNodes& nodes_;
  LruGuard& guard_;
  const std::uint32_t capacity_;
  ListEnds order_;
  std::uint32_t resident_back_ = kNil;  // nothing resident is older; kNil: not known
  std::uint32_t lru_back_ = kNil, lru_size_ = 0;
};

}  // namespace kvm::policy
