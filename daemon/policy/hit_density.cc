#include "daemon/policy/hit_density.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

namespace kvm::policy {
namespace {

// As many as S3-FIFO's ghosts here; at least as many as fit 1 MiB, since a conversation's pause
// does not shrink with the cache. What LRU would hold is among them: at most twice the capacity of
// blocks left since the oldest of those was used.
constexpr std::uint64_t kRememberedPerSlot = 4, kMinRemembered = 1 << 14;
constexpr std::uint32_t kUnitsPerCapacity = 64;
// The model looks at this many nodes or more; of more nodes it takes every 2nd, 4th, …
constexpr std::uint64_t kSampledNodes = 1 << 16;
// The model is updated four times while the cache turns over once, but not so often that it costs
// more than the rest.
constexpr std::uint64_t kUpdatesPerCapacity = 4, kMinUpdate = 4096;
constexpr std::uint64_t kFirstUpdate = 512;  // and then after an eighth more
// Counts are worth half after what is remembered has gone by about twice.
constexpr std::uint64_t kHalfLifeCapacities = 8, kMinHalfLife = 1 << 15;
// A parent with one child beside a new one is a conversation that went on: its old end was partly
// filled. With more it is a prompt that many share, and says nothing about the one that begins.
constexpr std::uint8_t kForksOfOneThread = 2;
constexpr std::uint8_t kMany = 0xFF;
constexpr std::size_t kDropped = 32;  // remembered blocks at a time

}  // namespace

HitDensityPolicy::HitDensityPolicy(std::uint32_t capacity)
    : capacity_(capacity),
      unit_(std::max(1u, capacity / kUnitsPerCapacity)),
      nodes_(std::max(kRememberedPerSlot * capacity, kMinRemembered) + capacity + kDropped),
      node_of_(capacity, kNil),
      table_(nodes_.most()),
      guard_(capacity),
      by_use_(nodes_, guard_, capacity),
      leaves_(nodes_, model_, capacity) {
  const std::uint64_t every = std::bit_floor(std::max<std::uint64_t>(1, nodes_.most() / kSampledNodes));
  sample_mask_ = static_cast<std::uint32_t>(every - 1);
  next_unit_ = unit_;
  UpdateModel();
}

void HitDensityPolicy::OnRequest(std::span<const Block> path) {
  path_.clear();
  path_at_ = 0;
  last_used_ = kNil;
  for (const Block& block : path) table_.Prefetch(block.key);
  for (const Block& block : path) {
    nodes_.Fetch(table_.Candidate(block.key));
  }
  std::uint64_t unknown = 0, leading = 0, leading_lru = 0;
  for (const Block& block : path) {
    const std::uint32_t node = table_.Find(block.key, nodes_.KeyOf());
    if (node == kNil) {
      ++unknown;
    } else {
      const HitDensityNode& known = nodes_[node];
      if (known.slot != kNoSlot) __builtin_prefetch(&node_of_[known.slot]);
      nodes_.Fetch(known.use.newer);
      nodes_.Fetch(known.use.older);
      nodes_.Fetch(known.links.newer);
      nodes_.Fetch(known.links.older);
    }
    if (leading == path_.size() && nodes_.Resident(node)) ++leading;
    if (leading_lru == path_.size() && node != kNil && nodes_[node].in_lru) ++leading_lru;
    path_.push_back({block.key, node});
  }
  growth_ = static_cast<std::uint8_t>(ReuseModel::GrowthLevel(unknown));
  guard_.OnRequest(leading, leading_lru, path.size());
}

// Into `use` field by field: returned as a whole, it would be loaded wider than it was stored,
// which waits for every store before it.
void HitDensityPolicy::FindUse(Key key, Key parent, Use& use) {
  if (path_at_ < path_.size() && path_[path_at_].key == key) {
    use.node = path_[path_at_].node;
    use.parent = path_at_ > 0 ? last_used_ : kNil;
    use.end = ++path_at_ == path_.size();
  } else {
    path_at_ = path_.size();
    if (parent != kNoKey) use.parent = table_.Find(parent, nodes_.KeyOf());
  }
  // Dropped, or made, since OnRequest.
  if (use.node == kNil || nodes_[use.node].key != key) use.node = table_.Find(key, nodes_.KeyOf());
  if (use.parent == use.node) use.parent = kNil;  // it says that it is its own parent
}

void HitDensityPolicy::OnInsert(Slot slot, const Block& block) {
  Use use;
  FindUse(block.key, block.parent, use);
  // Another block with this key is here: they have a node each, and the table finds the older one.
  const bool known = use.node != kNil && !nodes_.Resident(use.node);
  if (!known) {
    use.node = MakeNode(block.key, use.parent);
  } else {
    if (fetched_ == use.node) fetched_ = nodes_[use.node].links.newer;
    Unlink(remembered_, use.node, nodes_.LinksOf());
    if (nodes_[use.node].in_lru) guard_.CameBack();
  }
  Count(use, known);
  HitDensityNode& node = nodes_[use.node];
  node.slot = slot;
  node.first = block.depth == 0;
  node.parent = use.parent;
  node_of_[slot] = use.node;
  if (use.parent != kNil && ++nodes_[use.parent].children == 1 && nodes_.Resident(use.parent)) leaves_.Remove(use.parent);
  if (node.children == 0) leaves_.Add(use.node, now_, true);
}

void HitDensityPolicy::OnHit(Slot slot) {
  const std::uint32_t at = node_of_[slot];
  Use use;
  FindUse(nodes_[at].key, kNoKey, use);
  use.node = at;
  if (nodes_[at].parent != kNil) use.parent = nodes_[at].parent;
  if (use.parent == at) use.parent = kNil;
  Count(use, true);
  HitDensityNode& node = nodes_[at];
  if (node.parent == kNil && use.parent != kNil) {
    node.parent = use.parent;
    if (++nodes_[use.parent].children == 1 && nodes_.Resident(use.parent)) leaves_.Remove(use.parent);
  }
  if (node.children > 0) return;
  leaves_.Remove(at);
  leaves_.Add(at, now_, true);
}

void HitDensityPolicy::OnErase(Slot slot) {
  const bool chosen = chosen_ != kNil && nodes_[chosen_].slot == slot;
  const std::uint32_t at = chosen ? chosen_ : node_of_[slot];
  HitDensityNode& node = nodes_[at];
  if (chosen) {
    if (node.in_lru) guard_.BecameAbsent();
  } else {
    // It went by itself: an LRU cache would have lost it, too.
    by_use_.MoveToBack(at);
  }
  chosen_ = kNil;
  if (node.children == 0) leaves_.Remove(at);
  node_of_[slot] = kNoSlot;
  node.slot = kNoSlot;
  const std::uint32_t parent = std::exchange(node.parent, kNil);
  if (parent != kNil && --nodes_[parent].children == 0 && nodes_.Resident(parent)) leaves_.Add(parent, now_, false);
  PushFront(remembered_, at, nodes_.LinksOf());
}

Slot HitDensityPolicy::ChooseVictim() {
  if (std::exchange(aged_at_, now_) != now_) leaves_.MoveAged(now_);
  chosen_ = follows_lru() ? by_use_.OldestResident() : leaves_.Worst(now_);
  if (chosen_ != kNil && nodes_[chosen_].run == kNil) chosen_ = leaves_.Worst(now_);
  // Keys that name each other as parents have no leaf.
  if (chosen_ == kNil) chosen_ = by_use_.OldestResident();
  if (chosen_ == kNil) return kNoSlot;
  // The next one may be the leaf before this.
  if (const std::uint32_t next = nodes_[chosen_].links.newer; next != kNil) {
    nodes_.Fetch(nodes_[next].parent);
    nodes_.Fetch(nodes_[next].links.newer);
  }
  return nodes_[chosen_].slot;
}

Slot HitDensityPolicy::ChooseVictimAmong(const Evictable& evictable) {
  const Slot first = ChooseVictim();
  if (first == kNoSlot || evictable(first)) return first;
  chosen_ = follows_lru() ? by_use_.OldestAmong(evictable, true) : leaves_.WorstAmong(evictable);
  if (chosen_ == kNil) chosen_ = by_use_.OldestAmong(evictable, false);
  return chosen_ == kNil ? kNoSlot : nodes_[chosen_].slot;
}

std::uint32_t HitDensityPolicy::MakeNode(Key key, std::uint32_t parent) {
  if (!free_.empty()) {
    FetchNextDropped();
  } else if (nodes_.made() < nodes_.most()) {
    PushFront(free_, nodes_.Make(), nodes_.LinksOf());
  } else {
    DropOldestRemembered(parent);
  }
  const std::uint32_t at = free_.front;
  Unlink(free_, at, nodes_.LinksOf());
  HitDensityNode& node = nodes_[at];
  node = {};
  node.key = key;
  if (parent != kNil) {
    HitDensityNode& above = nodes_[parent];
    if (above.forks < kMany) ++above.forks;
    if (above.forks <= kForksOfOneThread) node.turns = above.turns;
  }
  table_.Insert(key, at);
  return at;
}

// Several at a time, so that they are fetched together. There are more nodes than slots, and each
// node that stays for its children has one in a slot. `parent` stays: it is about to have one.
void HitDensityPolicy::DropOldestRemembered(std::uint32_t parent) {
  std::array<std::uint32_t, kDropped> dropped;
  for (std::uint32_t& at : dropped) {
    at = remembered_.back;
    while (nodes_[at].children > 0 || at == last_used_ || at == parent) {
      Unlink(remembered_, at, nodes_.LinksOf());
      PushFront(remembered_, at, nodes_.LinksOf());
      at = remembered_.back;
    }
    Unlink(remembered_, at, nodes_.LinksOf());
  }
  for (const std::uint32_t at : dropped) {
    HitDensityNode& node = nodes_[at];
    if (Sampled(at)) model_.Ended(node.Class(), node.Age(now_), false);
    by_use_.Remove(at);
    table_.Erase(node.key, at);
    node.key = kNoKey;
    PushFront(free_, at, nodes_.LinksOf());
  }
  fetched_ = remembered_.back;
}

// One step for each block that is made, so that those of the next drop have come by then.
void HitDensityPolicy::FetchNextDropped() {
  if (fetched_ == kNil) return;
  const HitDensityNode& node = nodes_[fetched_];
  table_.Prefetch(node.key);
  nodes_.Fetch(node.use.newer);
  nodes_.Fetch(node.use.older);
  fetched_ = node.links.newer;
  nodes_.Fetch(fetched_);
}

// A block was used: ends its wait and begins the next one.
void HitDensityPolicy::Count(const Use& use, bool known) {
  if (++uses_ >= next_unit_) {
    ++now_;
    next_unit_ += unit_;
  }
  if (uses_ >= next_update_) UpdateModel();
  HitDensityNode& node = nodes_[use.node];
  if (known) {
    if (Sampled(use.node)) model_.Ended(node.Class(), node.Age(now_), true);
    if (node.turns < kMany) ++node.turns;
  }
  node.growth = growth_;
  node.used_at = now_;
  node.end = use.end;
  if (use.parent != kNil && nodes_[use.parent].end) {
    nodes_[use.parent].end = false;
    if (nodes_[use.parent].run != kNil) {
      leaves_.Remove(use.parent);
      leaves_.Add(use.parent, now_, true);
    }
  }
  by_use_.Used(use.node, use.parent == last_used_ ? use.parent : kNil, known);
  last_used_ = use.node;
}

void HitDensityPolicy::UpdateModel() {
  model_.Begin();
  const std::uint64_t step = std::uint64_t{sample_mask_} + 1;
  for (std::uint64_t at = 0; at < nodes_.made(); at += step) {
    __builtin_prefetch(&nodes_[std::min(at + 8 * step, nodes_.made() - 1)]);
    const HitDensityNode& node = nodes_[at];
    if (node.key != kNoKey) model_.Waiting(node.Class(), node.Age(now_));
  }
  const auto half_life = static_cast<double>(std::max(kMinHalfLife, kHalfLifeCapacities * capacity_));
  const double keep = std::exp2(-static_cast<double>(uses_ - last_update_) / half_life);
  model_.Finish(ReuseModel::Age(now_), keep, std::max(1.0, guard_.BlocksOfRequest() / (sample_mask_ + 1)));
  leaves_.Rank();
  last_update_ = uses_;
  const std::uint64_t most = std::max(kMinUpdate, capacity_ / kUpdatesPerCapacity);
  next_update_ = uses_ + std::min(most, std::max(kFirstUpdate, uses_ / 8));
}

}  // namespace kvm::policy
