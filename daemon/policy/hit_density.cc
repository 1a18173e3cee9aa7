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
// How far behind LRU the cache may come, of the blocks asked for: half of 0.003, the goal, since
// what is expected of the blocks that are not here is an estimate. Less, and it turns to LRU before
// it has learnt anything.
constexpr double kTolerated = 0.0015;
constexpr double kFewBlocks = 20;  // of a request, while none was announced
constexpr std::uint8_t kMany = 0xFF;
constexpr std::size_t kDropped = 32;  // remembered blocks at a time

}  // namespace

HitDensityPolicy::HitDensityPolicy(std::uint32_t capacity)
    : capacity_(capacity),
      unit_(std::max(1u, capacity / kUnitsPerCapacity)),
      nodes_(std::max(kRememberedPerSlot * capacity, kMinRemembered) + capacity + kDropped),
      node_of_(capacity, kNil),
      table_(nodes_.size()),
      leaves_(kLists, capacity) {
  const std::uint64_t every = std::bit_floor(std::max<std::uint64_t>(1, nodes_.size() / kSampledNodes));
  sample_mask_ = static_cast<std::uint32_t>(every - 1);
  for (std::uint32_t node = 0; node < nodes_.size(); ++node) PushBack(free_, node, LinksOf());
  next_unit_ = unit_;
  UpdateModel();
}

void HitDensityPolicy::OnRequest(std::span<const Block> path) {
  path_.clear();
  path_at_ = 0;
  last_used_ = kNil;
  for (const Block& block : path) table_.Prefetch(block.key);
  for (const Block& block : path) {
    Fetch(table_.Candidate(block.key));
  }
  std::uint64_t unknown = 0, leading = 0, leading_lru = 0;
  for (const Block& block : path) {
    const std::uint32_t node = table_.Find(block.key, KeyOf());
    if (node == kNil) {
      ++unknown;
    } else {
      const Node& known = nodes_[node];
      if (known.slot != kNoSlot) __builtin_prefetch(&node_of_[known.slot]);
      Fetch(known.use.newer);
      Fetch(known.use.older);
      Fetch(known.links.newer);
      Fetch(known.links.older);
    }
    if (leading == path_.size() && Resident(node)) ++leading;
    if (leading_lru == path_.size() && node != kNil && nodes_[node].in_lru) ++leading_lru;
    path_.push_back({block.key, node});
  }
  growth_ = static_cast<std::uint8_t>(ReuseModel::GrowthLevel(unknown));
  UpdateGuard(leading, leading_lru, path.size());
}

void HitDensityPolicy::UpdateGuard(std::uint64_t leading, std::uint64_t leading_lru, std::uint64_t blocks) {
  ++requests_;
  asked_ += blocks;
  hits_ += leading;
  lru_hits_ += leading_lru;
  // Old gains pay for one cache's content at most.
  lead_ = std::min(lead_ + static_cast<double>(leading) - static_cast<double>(leading_lru), static_cast<double>(capacity_));
  // While too little is known of what is absent, it is taken for what LRU holds on the whole.
  const double of_lru = (lru_used_ + 1) / (lru_used_ + lru_left_ + 2);
  const double missed = (missed_ + of_lru * BlocksOfRequest()) / (missed_ + spared_ + BlocksOfRequest());
  follow_lru_ = lead_ - missed * static_cast<double>(absent_) < -kTolerated * static_cast<double>(asked_);
}

// The blocks of a request share their fate: as many are one observation.
double HitDensityPolicy::BlocksOfRequest() const {
  return requests_ == 0 ? kFewBlocks : static_cast<double>(asked_) / static_cast<double>(requests_);
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
    if (parent != kNoKey) use.parent = table_.Find(parent, KeyOf());
  }
  // Dropped, or made, since OnRequest.
  if (use.node == kNil || nodes_[use.node].key != key) use.node = table_.Find(key, KeyOf());
  if (use.parent == use.node) use.parent = kNil;  // it says that it is its own parent
}

void HitDensityPolicy::OnInsert(Slot slot, const Block& block) {
  Use use;
  FindUse(block.key, block.parent, use);
  // Another block with this key is here: they have a node each, and the table finds the older one.
  const bool known = use.node != kNil && !Resident(use.node);
  if (!known) {
    use.node = MakeNode(block.key, use.parent);
  } else {
    if (fetched_ == use.node) fetched_ = nodes_[use.node].links.newer;
    Unlink(remembered_, use.node, LinksOf());
    if (nodes_[use.node].in_lru) {
      --absent_;
      ++missed_;
    }
  }
  Count(use, known);
  Node& node = nodes_[use.node];
  node.slot = slot;
  node.first = block.depth == 0;
  node.parent = use.parent;
  node_of_[slot] = use.node;
  if (use.parent != kNil && ++nodes_[use.parent].children == 1 && Resident(use.parent)) Delist(use.parent);
  if (node.children == 0) Enlist(use.node, true);
}

void HitDensityPolicy::OnHit(Slot slot) {
  const std::uint32_t at = node_of_[slot];
  Use use;
  FindUse(nodes_[at].key, kNoKey, use);
  use.node = at;
  if (nodes_[at].parent != kNil) use.parent = nodes_[at].parent;
  if (use.parent == at) use.parent = kNil;
  Count(use, true);
  Node& node = nodes_[at];
  if (node.parent == kNil && use.parent != kNil) {
    node.parent = use.parent;
    if (++nodes_[use.parent].children == 1 && Resident(use.parent)) Delist(use.parent);
  }
  if (node.children > 0) return;
  Delist(at);
  Enlist(at, true);
}

void HitDensityPolicy::OnErase(Slot slot) {
  const bool chosen = chosen_ != kNil && nodes_[chosen_].slot == slot;
  const std::uint32_t at = chosen ? chosen_ : node_of_[slot];
  Node& node = nodes_[at];
  if (chosen) {
    if (node.in_lru) ++absent_;
  } else {
    // It went by itself: an LRU cache would have lost it, too.
    RemoveFromUse(at);
    PushBack(by_use_, at, UseLinksOf());
  }
  chosen_ = kNil;
  if (node.children == 0) Delist(at);
  node_of_[slot] = kNoSlot;
  node.slot = kNoSlot;
  const std::uint32_t parent = std::exchange(node.parent, kNil);
  if (parent != kNil && --nodes_[parent].children == 0 && Resident(parent)) Enlist(parent, false);
  PushFront(remembered_, at, LinksOf());
}

std::uint32_t HitDensityPolicy::MakeNode(Key key, std::uint32_t parent) {
  free_.empty() ? DropOldestRemembered(parent) : FetchNextDropped();
  const std::uint32_t at = free_.front;
  Unlink(free_, at, LinksOf());
  Node& node = nodes_[at];
  node = {};
  node.key = key;
  if (parent != kNil) {
    Node& above = nodes_[parent];
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
      Unlink(remembered_, at, LinksOf());
      PushFront(remembered_, at, LinksOf());
      at = remembered_.back;
    }
    Unlink(remembered_, at, LinksOf());
  }
  for (const std::uint32_t at : dropped) {
    Node& node = nodes_[at];
    if (Sampled(at)) model_.Ended(ClassOf(node), AgeOf(node), false);
    RemoveFromUse(at);
    table_.Erase(node.key, at);
    node.key = kNoKey;
    PushFront(free_, at, LinksOf());
  }
  fetched_ = remembered_.back;
}

// One step for each block that is made, so that those of the next drop have come by then.
void HitDensityPolicy::FetchNextDropped() {
  if (fetched_ == kNil) return;
  const Node& node = nodes_[fetched_];
  table_.Prefetch(node.key);
  Fetch(node.use.newer);
  Fetch(node.use.older);
  fetched_ = node.links.newer;
  Fetch(fetched_);
}

// A block was used: ends its wait and begins the next one.
void HitDensityPolicy::Count(const Use& use, bool known) {
  if (++uses_ >= next_unit_) {
    ++now_;
    next_unit_ += unit_;
  }
  if (uses_ >= next_update_) UpdateModel();
  Node& node = nodes_[use.node];
  if (known) {
    if (Sampled(use.node)) model_.Ended(ClassOf(node), AgeOf(node), true);
    if (node.turns < kMany) ++node.turns;
  }
  node.growth = growth_;
  node.used_at = now_;
  node.end = use.end;
  if (use.parent != kNil && nodes_[use.parent].end) {
    nodes_[use.parent].end = false;
    if (nodes_[use.parent].run != kNil) {
      Delist(use.parent);
      Enlist(use.parent, true);
    }
  }
  MoveToFrontOfUse(use, known);
  last_used_ = use.node;
}

// Behind the block before it in the same request, else to the front: as if blocks were used from
// last to first.
void HitDensityPolicy::MoveToFrontOfUse(const Use& use, bool known) {
  if (known) {
    if (nodes_[use.node].in_lru) ++lru_used_;
    RemoveFromUse(use.node);
  }
  const bool behind = use.parent != kNil && use.parent == last_used_;
  Node& node = nodes_[use.node];
  if (behind) {
    InsertBehind(by_use_, use.parent, use.node, UseLinksOf());
    if (resident_back_ == use.parent) resident_back_ = use.node;
    node.in_lru = nodes_[use.parent].in_lru && (lru_size_ < capacity_ || lru_back_ != use.parent);
    if (node.in_lru && lru_back_ == use.parent) lru_back_ = use.node;
  } else {
    PushFront(by_use_, use.node, UseLinksOf());
    node.in_lru = true;
    if (lru_back_ == kNil) lru_back_ = use.node;
  }
  if (!node.in_lru || ++lru_size_ <= capacity_) return;
  Node& out = nodes_[lru_back_];
  out.in_lru = false;
  lru_back_ = out.use.newer;
  if (lru_back_ != kNil) Fetch(nodes_[lru_back_].use.newer);  // leaves after the next one
  --lru_size_;
  ++lru_left_;
  // `node` is being inserted and gets its slot only afterwards.
  if (out.slot != kNoSlot || &out == &node) return;
  --absent_;
  ++spared_;
}

void HitDensityPolicy::RemoveFromUse(std::uint32_t at) {
  Node& node = nodes_[at];
  if (resident_back_ == at) resident_back_ = node.use.newer;
  if (lru_back_ == at) lru_back_ = node.use.newer;
  if (node.in_lru) --lru_size_;
  node.in_lru = false;
  Unlink(by_use_, at, UseLinksOf());
}

void HitDensityPolicy::UpdateModel() {
  model_.Begin();
  const std::uint64_t step = std::uint64_t{sample_mask_} + 1;
  for (std::uint64_t at = 0; at < nodes_.size(); at += step) {
    __builtin_prefetch(&nodes_[std::min(at + 8 * step, nodes_.size() - 1)]);
    const Node& node = nodes_[at];
    if (node.key != kNoKey) model_.Waiting(ClassOf(node), AgeOf(node));
  }
  const auto half_life = static_cast<double>(std::max(kMinHalfLife, kHalfLifeCapacities * capacity_));
  const double keep = std::exp2(-static_cast<double>(uses_ - last_update_) / half_life);
  model_.Finish(ReuseModel::Age(now_), keep, std::max(1.0, BlocksOfRequest() / (sample_mask_ + 1)));
  leaves_.Rank([this](std::uint32_t list) { return WorthOfList(list); });
  last_update_ = uses_;
  const std::uint64_t most = std::max(kMinUpdate, capacity_ / kUpdatesPerCapacity);
  next_update_ = uses_ + std::min(most, std::max(kFirstUpdate, uses_ / 8));
}

}  // namespace kvm::policy
