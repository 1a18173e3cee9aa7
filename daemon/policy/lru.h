// Least recently used. Blocks of a request are reported from the last to the first, so a block
// never leaves after its parent as long as requests name whole prefixes.
#pragma once

#include "daemon/policy/eviction_policy.h"
#include "daemon/policy/huge_pages.h"
#include "daemon/policy/linked_list.h"

namespace kvm::policy {

class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(std::uint32_t capacity) : links_(capacity) {}

  std::string_view name() const noexcept override { return "lru"; }
  Order order() const noexcept override { return Order::kLastToFirst; }
  bool counts_uses() const noexcept override { return false; }
  void OnInsert(Slot slot, const Block& block) override;
  void OnHit(Slot slot) override;
  void OnErase(Slot slot) override;
  Slot ChooseVictim() override { return queue_.back; }
  Slot ChooseVictimAmong(const Evictable& evictable) override;

 private:
  static_assert(kNil == kNoSlot);

  ListEnds queue_;
  HugeVector<Links> links_;  // [capacity]
};

}  // namespace kvm::policy
