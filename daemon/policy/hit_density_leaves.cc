#include "daemon/policy/hit_density_leaves.h"

namespace kvm::policy {

HitDensityLeaves::HitDensityLeaves(HitDensityNodes& nodes, const ReuseModel& model, std::uint32_t capacity)
    : nodes_(nodes), model_(model), lists_(kLists, capacity) {}

void HitDensityLeaves::Add(std::uint32_t at, std::uint32_t now, bool front) {
  HitDensityNode& node = nodes_[at];
  const bool rootless = !node.first && !nodes_.Resident(node.parent);
  // A prefix is cut block by block: what the next cut looks at.
  if (node.parent != kNil) nodes_.Fetch(nodes_[node.parent].parent);
  const auto list = rootless ? kRootless : static_cast<std::uint32_t>(1 + ReuseModel::Cell(node.Class(), node.Age(now)));
  node.run = lists_.Add(list, at, node.used_at, front, nodes_.LinksOf());
}

void HitDensityLeaves::Remove(std::uint32_t at) {
  lists_.Remove(nodes_[at].run, at, nodes_.LinksOf());
  nodes_[at].run = kNil;
}

void HitDensityLeaves::MoveAged(std::uint32_t now) {
  lists_.ForEachFilled([&](std::uint32_t list) {
    if (list == kRootless) return;
    const std::uint32_t age = (list - 1) % ReuseModel::kAges;
    while (!lists_.empty(list)) {
      const std::uint32_t age_now = ReuseModel::Age(now - lists_.BackStamp(list));
      if (age_now <= age) break;
      lists_.MoveBackRun(list, list - age + age_now);
    }
  });
}

void HitDensityLeaves::Rank() {
  lists_.Rank([this](std::uint32_t list) { return WorthOfList(list); });
}

std::uint32_t HitDensityLeaves::Worst(std::uint32_t now) {
  for (;;) {
    const std::uint32_t list = lists_.First();
    if (list == kNil) return kNil;
    const std::uint32_t at = lists_.Back(list);
    if (list != kRootless || !nodes_.Resident(nodes_[at].parent)) return at;
    // Its parent came back.
    Remove(at);
    Add(at, now, true);
  }
}

std::uint32_t HitDensityLeaves::WorstAmong(const Evictable& evictable) {
  std::uint32_t found = kNil, with_parent = kNil, looked = 0;
  lists_.ForEachFilled([&](std::uint32_t list) {
    if (found != kNil || looked >= kMaxVictimsLookedAt) return;
    const auto look = [&](std::uint32_t at) {
      // A rootless leaf whose parent came back is none any more: where it belongs is not known, so
      // it leaves last.
      const bool came_back = list == kRootless && nodes_.Resident(nodes_[at].parent);
      std::uint32_t& leaf = came_back ? with_parent : found;
      if (leaf == kNil && evictable(nodes_[at].slot)) leaf = at;
      return ++looked < kMaxVictimsLookedAt && found == kNil;
    };
    lists_.ForEachFromBack(list, look, nodes_.LinksOf());
  });
  return found != kNil ? found : with_parent;
}

double HitDensityLeaves::WorthOfList(std::uint32_t list) const {
  return list == kRootless ? -1 : model_.Density((list - 1) / ReuseModel::kAges, (list - 1) % ReuseModel::kAges);
}

}  // namespace kvm::policy
