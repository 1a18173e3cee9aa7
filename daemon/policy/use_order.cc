#include "daemon/policy/use_order.h"

namespace kvm::policy {

void UseOrder::Used(std::uint32_t at, std::uint32_t before, bool known) {
  HitDensityNode& node = nodes_[at];
  if (known) {
    if (node.in_lru) guard_.UsedInLru();
    Remove(at);
  }
  if (before != kNil) {
    InsertBehind(order_, before, at, nodes_.UseLinksOf());
    if (resident_back_ == before) resident_back_ = at;
    node.in_lru = nodes_[before].in_lru && (lru_size_ < capacity_ || lru_back_ != before);
    if (node.in_lru && lru_back_ == before) lru_back_ = at;
  } else {
    PushFront(order_, at, nodes_.UseLinksOf());
    node.in_lru = true;
    if (lru_back_ == kNil) lru_back_ = at;
  }
  if (!node.in_lru || ++lru_size_ <= capacity_) return;
  HitDensityNode& out = nodes_[lru_back_];
  out.in_lru = false;
  lru_back_ = out.use.newer;
  if (lru_back_ != kNil) nodes_.Fetch(nodes_[lru_back_].use.newer);  // leaves after the next one
  --lru_size_;
  // The one that is used now has its slot, though that is not recorded yet.
  guard_.LeftLru(out.slot == kNoSlot && &out != &node);
}

void UseOrder::Remove(std::uint32_t at) {
  HitDensityNode& node = nodes_[at];
  if (resident_back_ == at) resident_back_ = node.use.newer;
  if (lru_back_ == at) lru_back_ = node.use.newer;
  if (node.in_lru) --lru_size_;
  node.in_lru = false;
  Unlink(order_, at, nodes_.UseLinksOf());
}

void UseOrder::MoveToBack(std::uint32_t at) {
  Remove(at);
  PushBack(order_, at, nodes_.UseLinksOf());
}

std::uint32_t UseOrder::OldestResident() {
  if (resident_back_ == kNil) resident_back_ = order_.back;
  while (resident_back_ != kNil && !nodes_.Resident(resident_back_)) resident_back_ = nodes_[resident_back_].use.newer;
  if (resident_back_ != kNil) {
    const std::uint32_t next = nodes_[resident_back_].use.newer;
    if (next != kNil) nodes_.Fetch(nodes_[next].use.newer);
  }
  return resident_back_;
}

std::uint32_t UseOrder::OldestAmong(const Evictable& evictable, bool leaves_only) {
  std::uint32_t looked = 0;
  for (std::uint32_t at = OldestResident(); at != kNil && looked < kMaxVictimsLookedAt; at = nodes_[at].use.newer, ++looked) {
    if (!nodes_.Resident(at) || (leaves_only && nodes_[at].run == kNil)) continue;
    if (evictable(nodes_[at].slot)) return at;
  }
  return kNil;
}

}  // namespace kvm::policy
