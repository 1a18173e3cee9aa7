// The leaves of HitDensityPolicy: resident blocks without a resident child, in lists of equal
// worth.
//
// Lists hold the youngest in front, about: a block that became a leaf goes to the back of its list.
// Those that have grown too old for their list are at its back, then. What a list stands for beside
// the age does not change while a block is in it.
#pragma once

#include <cstdint>

#include "daemon/policy/hit_density_nodes.h"
#include "daemon/policy/ranked_lists.h"
#include "daemon/policy/reuse_model.h"

namespace kvm::policy {

class HitDensityLeaves {
 public:
  // `nodes` and `model` have to outlive it. `capacity`: most leaves.
  HitDensityLeaves(HitDensityNodes& nodes, const ReuseModel& model, std::uint32_t capacity);

  // `now`: in units of age. `front`: it was just used; else it became a leaf as its child left.
  void Add(std::uint32_t node, std::uint32_t now, bool front);
  void Remove(std::uint32_t node);
  // Puts the leaves that have grown too old for their lists into those of their ages.
  void MoveAged(std::uint32_t now);
  // After a change of the model.
  void Rank();

  // The least of all leaves; kNil: there is none.
  std::uint32_t Worst(std::uint32_t now);
  // The least of those that `evictable` allows, of the first kMaxVictimsLookedAt; kNil: none of
  // them.
  std::uint32_t WorstAmong(const Evictable& evictable);
  double Worth(std::uint32_t node) const { return WorthOfList(lists_.ListOf(nodes_[node].run)); }

 private:
  static constexpr std::uint32_t kRootless = 0;  // the list of leaves whose parent is not resident
  static constexpr std::uint32_t kLists = 1 + ReuseModel::kClasses * ReuseModel::kAges;

  double WorthOfList(std::uint32_t list) const;

  HitDensityNodes& nodes_;
  const ReuseModel& model_;
  RankedLists lists_;
};

}  // namespace kvm::policy
