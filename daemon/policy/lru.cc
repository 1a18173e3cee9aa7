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

}  // namespace kvm::policy
