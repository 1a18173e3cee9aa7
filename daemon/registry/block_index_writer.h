// Write side of the block index (layout.h: IndexSlot). One thread writes, any number read
// meanwhile.
//
// Invariants, at every instant a reader can see:
//   - all slots between a key's home and each of its entries are occupied;
//   - an entry that is present for the whole of a lookup is found (moves are announced in
//     index_moves);
//   - kMore is set on every replica of a key but the last on its chain.
// and one about work: no entry stands further than kMaxDisplacement slots from its home. Keys come
// from clients and may all share one home, so an insertion that would need more is refused. The
// bound also limits the search behind a hole. Every move takes away displacement that an insertion
// added, so all erasures together cost at most kMaxDisplacement moves for each entry ever inserted.
//
// Memory order: a slot's version goes odd (relaxed), release fence, fields (relaxed), version even
// (release). A crash in the middle leaves one slot odd, which readers take for a miss of that
// chain.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "proto/shm/layout.h"
#include "proto/shm/registry_view.h"
#include "proto/wire/publish_record.h"

namespace kvm::daemon {

inline constexpr std::uint64_t kNoSlot = ~std::uint64_t{0};

// At load 3/4 the largest displacement of hashed keys is near 380 among a million entries and 450
// among sixteen million (ln n / 0.038); readers look at 4096 slots.
inline constexpr std::uint64_t kMaxDisplacement = 1024;

class BlockIndexWriter {
 public:
  // Called whenever an entry has moved to a new slot, so that reverse maps stay right.
  using Moved = std::function<void(const IndexEntry& entry, std::uint64_t slot)>;

  // `slots` and `tags`: zeroed, for `count` slots, with no other writer. `max_entries` < count.
  BlockIndexWriter(layout::IndexSlot* slots, layout::TagWord* tags, std::uint64_t count, std::uint64_t max_entries,
                   std::atomic<std::uint64_t>* moves, Moved moved);

  // Always inlined: GCC treats a function that only prefetches as one without effect, and drops the
  // call.
  [[gnu::always_inline]] void Prefetch(const BlockKey& key) const noexcept { PrefetchSlot(layout::Home(key, count_)); }
  [[gnu::always_inline]] void PrefetchSlot(std::uint64_t slot) const noexcept {
    if (slot >= count_) return;
    __builtin_prefetch(&slots_[slot], 1);
    __builtin_prefetch(&slots_[slot + 1 == count_ ? slot : slot + 1], 1);
  }

  // Slots of `key`'s replicas in chain order; returns how many, at most kMaxReplicas.
  std::size_t Replicas(const BlockKey& key, std::span<std::uint64_t> slots) const noexcept;

  // Adds an entry behind the key's other replicas. Precondition: !full(). Returns its slot, or
  // kNoSlot if the chain is too long.
  std::uint64_t Insert(const IndexEntry& entry) noexcept;
  // Changes generation, parent, depth and time of the entry in `slot`; its key, region and block
  // stay.
  void Update(std::uint64_t slot, const IndexEntry& entry) noexcept;
  // Removes the entry in `slot` and closes the gap. Precondition: the slot is occupied.
  void Erase(std::uint64_t slot) noexcept;

  IndexEntry At(std::uint64_t slot) const noexcept;  // region_epoch 0: empty
  bool full() const noexcept { return entries_ >= max_entries_; }
  std::uint64_t entries() const noexcept { return entries_; }
  std::uint64_t slots() const noexcept { return count_; }

 private:
  std::uint64_t Next(std::uint64_t slot) const noexcept { return slot + 1 == count_ ? 0 : slot + 1; }
  std::uint64_t Distance(std::uint64_t from, std::uint64_t to) const noexcept { return to >= from ? to - from : to + count_ - from; }
  bool Empty(std::uint64_t slot) const noexcept { return slots_[slot].region_epoch.load(std::memory_order_relaxed) == 0; }
  BlockKey KeyAt(std::uint64_t slot) const noexcept;
  void Write(std::uint64_t slot, const IndexEntry& entry) noexcept;
  void SetMore(std::uint64_t slot, bool more) noexcept;

  layout::IndexSlot* const slots_;
  layout::TagWord* const tags_;
  const std::uint64_t count_;
  const std::uint64_t max_entries_;
  std::atomic<std::uint64_t>* const moves_;
  const Moved moved_;
  std::uint64_t entries_ = 0;
};

}  // namespace kvm::daemon
