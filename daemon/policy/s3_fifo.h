// S3-FIFO: a small queue, which most blocks leave without a use; a main queue for blocks that were
// used again; and a ghost queue with the keys of blocks that left the small queue, which go to the
// main queue if they are inserted again.
//
// Source: Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need for cache eviction", SOSP
// 2023. Small queue of 10 % and two bits of frequency as in the paper; one use is enough for the
// main queue; the ghost queue has four times the capacity, since a conversation comes back after
// many times more blocks than a cache holds.
#pragma once

#include "daemon/policy/eviction_policy.h"
#include "daemon/policy/huge_pages.h"
#include "daemon/policy/key_table.h"
#include "daemon/policy/linked_list.h"

namespace kvm::policy {

class S3FifoPolicy final : public EvictionPolicy {
 public:
  explicit S3FifoPolicy(std::uint32_t capacity);

  std::string_view name() const noexcept override { return "s3-fifo"; }
  Order order() const noexcept override { return Order::kLastToFirst; }
  void OnInsert(Slot slot, const Block& block) override;
  void OnHit(Slot slot) override;
  void OnErase(Slot slot) override;
  Slot ChooseVictim() override;
  Slot ChooseVictimAmong(const Evictable& evictable) override;

 private:
  struct Entry {
    Key key = kNoKey;
    Links links;
    std::uint8_t uses = 0;
    bool main = false;
  };
  struct Ghost {
    Key key = kNoKey;
    Links links;
  };

  Slot ChooseFromSmall();
  Slot ChooseFromMain();
  void Remember(Key key);
  bool Forget(Key key);
  Links& links(Slot slot) noexcept { return entries_[slot].links; }
  Links& ghost_links(std::uint32_t ghost) noexcept { return ghosts_[ghost].links; }

  std::uint32_t small_target_;
  std::uint32_t small_size_ = 0;
  ListEnds small_, main_;
  Slot chosen_ = kNoSlot;      // by ChooseVictim
  HugeVector<Entry> entries_;  // [capacity]
  HugeVector<Ghost> ghosts_;   // [kGhostsPerSlot * capacity]
  ListEnds ghost_queue_, free_ghosts_;
  KeyTable ghost_of_;
};

}  // namespace kvm::policy
