#include "daemon/policy/s3_fifo.h"

#include <algorithm>

namespace kvm::policy {
namespace {

constexpr std::uint32_t kSmallShare = 10;  // the small queue's share is 1 / kSmallShare
constexpr std::uint32_t kGhostsPerSlot = 4;
constexpr std::uint8_t kMaxUses = 3;

}  // namespace

S3FifoPolicy::S3FifoPolicy(std::uint32_t capacity)
    : small_target_(std::max(1u, capacity / kSmallShare)),
      entries_(capacity),
      ghosts_(std::uint64_t{kGhostsPerSlot} * capacity),
      ghost_of_(ghosts_.size()) {
  for (std::uint32_t ghost = 0; ghost < ghosts_.size(); ++ghost) {
    PushBack(free_ghosts_, ghost, [this](std::uint32_t at) -> Links& { return ghost_links(at); });
  }
}

void S3FifoPolicy::OnInsert(Slot slot, const Block& block) {
  Entry& entry = entries_[slot];
  entry.key = block.key;
  entry.uses = 0;
  entry.main = Forget(block.key);
  PushFront(entry.main ? main_ : small_, slot, [this](Slot at) -> Links& { return links(at); });
  small_size_ += entry.main ? 0 : 1;
}

void S3FifoPolicy::OnHit(Slot slot) { entries_[slot].uses = std::min<std::uint8_t>(kMaxUses, entries_[slot].uses + 1); }

void S3FifoPolicy::OnErase(Slot slot) {
  const Entry& entry = entries_[slot];
  Unlink(entry.main ? main_ : small_, slot, [this](Slot at) -> Links& { return links(at); });
  if (!entry.main) {
    --small_size_;
    if (slot == chosen_) Remember(entry.key);
  }
  chosen_ = kNoSlot;
}

Slot S3FifoPolicy::ChooseVictim() {
  if (small_.empty() && main_.empty()) return kNoSlot;
  chosen_ = kNoSlot;
  if (small_size_ >= small_target_ || main_.empty()) chosen_ = ChooseFromSmall();
  if (chosen_ == kNoSlot) chosen_ = ChooseFromMain();
  return chosen_;
}

// Moves blocks that were used to the main queue, and returns the first that was not; kNoSlot if all
// were used.
Slot S3FifoPolicy::ChooseFromSmall() {
  const auto links_of = [this](Slot at) -> Links& { return links(at); };
  while (!small_.empty()) {
    const Slot oldest = small_.back;
    if (entries_[oldest].uses == 0) return oldest;
    Unlink(small_, oldest, links_of);
    --small_size_;
    entries_[oldest].uses = 0;
    entries_[oldest].main = true;
    PushFront(main_, oldest, links_of);
  }
  return kNoSlot;
}

Slot S3FifoPolicy::ChooseFromMain() {
  const auto links_of = [this](Slot at) -> Links& { return links(at); };
  while (entries_[main_.back].uses > 0) {
    const Slot oldest = main_.back;
    --entries_[oldest].uses;
    Unlink(main_, oldest, links_of);
    PushFront(main_, oldest, links_of);
  }
  return main_.back;
}

// Blocks that may not be evicted keep their place in the queues.
Slot S3FifoPolicy::ChooseVictimAmong(const Evictable& evictable) {
  const Slot first = ChooseVictim();
  if (first == kNoSlot || evictable(first)) return first;
  chosen_ = kNoSlot;
  Slot used = kNoSlot;
  std::uint32_t looked = 0;
  for (const ListEnds* queue : {&small_, &main_}) {
    for (Slot slot = queue->back; slot != kNoSlot && looked < kMaxVictimsLookedAt; ++looked, slot = entries_[slot].links.newer) {
      if (!evictable(slot)) continue;
      if (entries_[slot].uses == 0) return chosen_ = slot;
      if (used == kNoSlot) used = slot;
    }
  }
  return chosen_ = used;
}

void S3FifoPolicy::Remember(Key key) {
  const auto links_of = [this](std::uint32_t at) -> Links& { return ghost_links(at); };
  Forget(key);
  if (free_ghosts_.empty()) Forget(ghosts_[ghost_queue_.back].key);
  const std::uint32_t ghost = free_ghosts_.back;
  Unlink(free_ghosts_, ghost, links_of);
  ghosts_[ghost].key = key;
  PushFront(ghost_queue_, ghost, links_of);
  ghost_of_.Insert(key, ghost);
}

bool S3FifoPolicy::Forget(Key key) {
  const auto links_of = [this](std::uint32_t at) -> Links& { return ghost_links(at); };
  const auto key_of = [this](std::uint32_t at) { return ghosts_[at].key; };
  const std::uint32_t ghost = ghost_of_.Find(key, key_of);
  if (ghost == kNil) return false;
  ghost_of_.Erase(key, ghost);
  Unlink(ghost_queue_, ghost, links_of);
  PushBack(free_ghosts_, ghost, links_of);
  return true;
}

}  // namespace kvm::policy
