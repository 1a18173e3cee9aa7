// The leaves of HitDensityPolicy by what they are worth, and which one leaves.
#include "daemon/policy/hit_density.h"

namespace kvm::policy {

Slot HitDensityPolicy::ChooseVictim() {
  if (aged_at_ != now_) MoveAgedLeaves();
  chosen_ = follow_lru_ ? OldestResident() : WorstLeaf();
  if (chosen_ != kNil && nodes_[chosen_].run == kNil) chosen_ = WorstLeaf();
  // Keys that name each other as parents have no leaf.
  if (chosen_ == kNil) chosen_ = OldestResident();
  if (chosen_ == kNil) return kNoSlot;
  // The next one may be the leaf before this.
  if (const std::uint32_t next = nodes_[chosen_].links.newer; next != kNil) {
    Fetch(nodes_[next].parent);
    Fetch(nodes_[next].links.newer);
  }
  return nodes_[chosen_].slot;
}

std::uint32_t HitDensityPolicy::WorstLeaf() {
  for (;;) {
    const std::uint32_t list = leaves_.First();
    if (list == kNil) return kNil;
    const std::uint32_t at = leaves_.Back(list);
    if (list != kRootless || !Resident(nodes_[at].parent)) return at;
    // Its parent came back.
    Delist(at);
    Enlist(at, true);
  }
}

std::uint32_t HitDensityPolicy::OldestResident() {
  if (resident_back_ == kNil) resident_back_ = by_use_.back;
  while (resident_back_ != kNil && !Resident(resident_back_)) resident_back_ = nodes_[resident_back_].use.newer;
  if (resident_back_ != kNil) {
    const std::uint32_t next = nodes_[resident_back_].use.newer;
    if (next != kNil) Fetch(nodes_[next].use.newer);
  }
  return resident_back_;
}

Slot HitDensityPolicy::ChooseVictimAmong(const Evictable& evictable) {
  const Slot first = ChooseVictim();
  if (first == kNoSlot || evictable(first)) return first;
  chosen_ = follow_lru_ ? OldestAmong(evictable, true) : WorstLeafAmong(evictable);
  if (chosen_ == kNil) chosen_ = OldestAmong(evictable, false);
  return chosen_ == kNil ? kNoSlot : nodes_[chosen_].slot;
}

std::uint32_t HitDensityPolicy::WorstLeafAmong(const Evictable& evictable) {
  std::uint32_t found = kNil, no_orphan = kNil, looked = 0;
  leaves_.ForEachFilled([&](std::uint32_t list) {
    if (found != kNil || looked >= kMaxVictimsLookedAt) return;
    const auto look = [&](std::uint32_t at) {
      // An orphan whose parent came back is none any more: where it belongs is not known, so it
      // leaves last.
      const bool came_back = list == kRootless && Resident(nodes_[at].parent);
      std::uint32_t& leaf = came_back ? no_orphan : found;
      if (leaf == kNil && evictable(nodes_[at].slot)) leaf = at;
      return ++looked < kMaxVictimsLookedAt && found == kNil;
    };
    leaves_.ForEachFromBack(list, look, LinksOf());
  });
  return found != kNil ? found : no_orphan;
}

std::uint32_t HitDensityPolicy::OldestAmong(const Evictable& evictable, bool leaves_only) {
  std::uint32_t looked = 0;
  for (std::uint32_t at = OldestResident(); at != kNil && looked < kMaxVictimsLookedAt; at = nodes_[at].use.newer, ++looked) {
    if (!Resident(at) || (leaves_only && nodes_[at].run == kNil)) continue;
    if (evictable(nodes_[at].slot)) return at;
  }
  return kNil;
}

double HitDensityPolicy::Worth(Slot slot) const { return WorthOfList(leaves_.ListOf(nodes_[node_of_[slot]].run)); }

double HitDensityPolicy::WorthOfList(std::uint32_t list) const {
  return list == kRootless ? -1 : model_.Density((list - 1) / ReuseModel::kAges, (list - 1) % ReuseModel::kAges);
}

void HitDensityPolicy::Enlist(std::uint32_t at, bool front) {
  Node& node = nodes_[at];
  const bool orphan = !node.first && !Resident(node.parent);
  // A prefix is cut block by block: what the next cut looks at.
  if (node.parent != kNil) Fetch(nodes_[node.parent].parent);
  const auto list = orphan ? kRootless : static_cast<std::uint32_t>(1 + ReuseModel::Cell(ClassOf(node), AgeOf(node)));
  node.run = leaves_.Add(list, at, node.used_at, front, LinksOf());
}

void HitDensityPolicy::Delist(std::uint32_t at) {
  leaves_.Remove(nodes_[at].run, at, LinksOf());
  nodes_[at].run = kNil;
}

// Lists hold the youngest in front, about: a block that became a leaf goes to the back of its list.
// Those that have grown too old for their list are at its back, then. What a list stands for beside
// the age does not change while a block is in it.
void HitDensityPolicy::MoveAgedLeaves() {
  aged_at_ = now_;
  leaves_.ForEachFilled([this](std::uint32_t list) {
    if (list == kRootless) return;
    const std::uint32_t age = (list - 1) % ReuseModel::kAges;
    while (!leaves_.empty(list)) {
      const std::uint32_t age_now = ReuseModel::Age(now_ - leaves_.BackStamp(list));
      if (age_now <= age) break;
      leaves_.MoveBackRun(list, list - age + age_now);
    }
  });
}

}  // namespace kvm::policy
