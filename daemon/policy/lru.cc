#include "daemon/policy/lru.h"

namespace kvm::policy {

void LruPolicy::OnInsert(Slot slot, const Block& /*block*/) {
  PushFront(queue_, slot, [this](Slot at) -> Links& { return links_[at]; });
}

void LruPolicy::OnHit(Slot slot) {
  const auto links = [this](Slot at) -> Links& { return links_[at]; };
  Unlink(queue_, slot, links);
  PushFront(queue_, slot, links);
}

void LruPolicy::OnErase(Slot slot) {
  Unlink(queue_, slot, [this](Slot at) -> Links& { return links_[at]; });
}

Slot LruPolicy::ChooseVictimAmong(const Evictable& evictable) {
  Slot slot = queue_.back;
  for (std::uint32_t looked = 0; slot != kNoSlot && looked < kMaxVictimsLookedAt; ++looked, slot = links_[slot].newer) {
    if (evictable(slot)) return slot;
  }
  return kNoSlot;
}

}  // namespace kvm::policy
