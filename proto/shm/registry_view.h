// Read side of a registry segment: what workers and kvctl see. No system call, no lock, no waiting.
//
// Everything in the segment is treated as input: the header is checked once against the mapping's
// size, indices are bounds-checked, retries are bounded. An entry is a hint only (I2): callers
// check the block's generation before and after they use the bytes. Thread-safe; the view must not
// outlive the mapping, which it shares.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kvm/block_key.h"
#include "kvm/error.h"
#include "proto/shm/generation_table.h"
#include "proto/shm/layout.h"
#include "proto/shm/sealed_memory.h"

namespace kvm {

// One consistent copy of an index slot.
struct IndexEntry {
  BlockKey key;
  Generation generation = 0;
  std::uint64_t parent_lo = 0;
  std::uint32_t region = 0;
  std::uint32_t region_epoch = 0;
  std::uint32_t block = 0;
  std::uint32_t depth = 0;
  std::uint32_t published_s = 0;
  bool more = false;  // further replicas of the key follow
};

// What a lookup needs of a slot.
struct IndexHit {
  Generation generation = 0;
  std::uint32_t region = 0;
  std::uint32_t region_epoch = 0;
  std::uint32_t block = 0;
  std::uint32_t more = 0;  // not 0: further replicas of the key follow
};

// Lookup over raw slots; kvmd's tests and writer use it as well.
class IndexReader {
 public:
  static constexpr std::uint64_t kNoHint = ~std::uint64_t{0};

  IndexReader() = default;
  IndexReader(const layout::IndexSlot* slots, std::uint64_t count, const std::atomic<std::uint64_t>* moves,
              const layout::TagWord* tags) noexcept
      : slots_(slots), count_(count), moves_(moves), tags_(tags) {}

  // For pipelines over many keys: call Prefetch(k), some keys later hint = Probe(k), and some keys
  // later Find(k, out, hint), so that the loads of one key overlap with those of the others.
  // Prefetch and Probe are optional. Always inlined: GCC treats a function that only prefetches as
  // one without effect, and drops the call.
  [[gnu::always_inline]] void Prefetch(const BlockKey& key) const noexcept { __builtin_prefetch(&tags_[layout::Home(key, count_) / 8]); }
  // The slot where the key seems to be, judging by the tags; prefetches that slot.
  [[gnu::always_inline]] std::uint64_t Probe(const BlockKey& key) const noexcept {
    const std::uint64_t home = layout::Home(key, count_);
    const std::uint64_t found = TagsFound(TagsFrom(home), layout::Tag(key));
    std::uint64_t slot = home + TagsBefore(found);
    // One key in twenty, in a full index
    if (found == 0) [[unlikely]]
      slot = NextTagged(home + kTagsAtOnce, layout::Tag(key));
    if (slot >= count_) return kNoHint;
    __builtin_prefetch(&slots_[slot]);
    return slot;
  }

  // The same for an index that is nearly empty, where most keys are at their home: without tags,
  // which a key needs one more line of memory for. PrefetchHome(k), some keys later Find(k, out,
  // Home(k)).
  [[gnu::always_inline]] void PrefetchHome(const BlockKey& key) const noexcept { __builtin_prefetch(&slots_[Home(key)]); }
  std::uint64_t Home(const BlockKey& key) const noexcept { return layout::Home(key, count_); }

  // The common case of Find, inlined: true if `slot` (a hint) holds the key's only replica. False
  // tells the caller nothing about the key: call Find.
  bool FindOnly(const BlockKey& key, std::uint64_t slot, IndexHit& out) const noexcept {
    if (slot >= count_) return false;
    const layout::IndexSlot& at = slots_[slot];
    const std::uint32_t version = at.version.load(std::memory_order_acquire);
    out.region_epoch = at.region_epoch.load(std::memory_order_relaxed);
    const std::uint64_t lo = at.key_lo.load(std::memory_order_relaxed), hi = at.key_hi.load(std::memory_order_relaxed);
    out.generation = at.generation.load(std::memory_order_relaxed);
    out.region = at.region.load(std::memory_order_relaxed);
    out.block = at.block.load(std::memory_order_relaxed);
    out.more = at.flags.load(std::memory_order_relaxed) & layout::IndexSlot::kMore;
    std::atomic_thread_fence(std::memory_order_acquire);
    const bool stable = (version & 1) == 0 && at.version.load(std::memory_order_relaxed) == version;
    return stable && out.region_epoch != 0 && out.more == 0 && lo == key.lo && hi == key.hi;
  }

  // Replicas of `key`, in order of publication, into `out`; returns how many, at most
  // min(out.size(), kMaxReplicas). 0 if the key is absent, or if kvmd died while it wrote that
  // slot.
  std::size_t Find(const BlockKey& key, std::span<IndexHit> out, std::uint64_t hint = kNoHint) const noexcept;
  std::size_t Find(const BlockKey& key, std::span<IndexEntry> out) const noexcept;

  // Copies slot `slot`. False if it is empty or out of range, or if the writer is in the middle of
  // a write.
  bool ReadSlot(std::uint64_t slot, IndexEntry& out) const noexcept;

  std::uint64_t slots() const noexcept { return count_; }

 private:
  template <class Copy>
  std::size_t FindStable(const BlockKey& key, std::span<Copy> out, std::uint64_t hint) const noexcept;
  template <class Copy>
  std::size_t FindOnce(const BlockKey& key, std::span<Copy> out, std::uint64_t at, std::uint64_t most) const noexcept;

  static constexpr std::uint64_t kTagsAtOnce = 8;
  // The tags of the slots from `slot` on, lowest first.
  std::uint64_t TagsFrom(std::uint64_t slot) const noexcept {
    const layout::TagWord* word = &tags_[slot / kTagsAtOnce];
    const unsigned shift = static_cast<unsigned>(slot % kTagsAtOnce) * 8;
    // In two steps, of which the first makes a shift by 64 of one by 0, without a branch.
    return word[0].load(std::memory_order_relaxed) >> shift | (word[1].load(std::memory_order_relaxed) << 1) << (63 - shift);
  }
  // The lowest bit that is set marks the first of `tags` that is `tag` or empty; what lies above it
  // may be wrong. 0: there is none. Only an empty slot's tag has no highest bit, so the subtraction
  // borrows from no byte below it.
  static std::uint64_t TagsFound(std::uint64_t tags, std::uint64_t tag) noexcept {
    constexpr std::uint64_t kOnes = 0x0101010101010101, kHighs = 0x8080808080808080;
    return ((kHighs - (tags ^ (tag * kOnes))) | ~tags) & kHighs;
  }
  static std::uint64_t TagsBefore(std::uint64_t found) noexcept { return static_cast<std::uint64_t>(std::countr_zero(found)) / 8; }
  // The first slot from `slot` on that is tagged `tag` or empty; kNoHint: none is before the
  // table's end or within kMaxProbes slots.
  std::uint64_t NextTagged(std::uint64_t slot, std::uint64_t tag) const noexcept;

  const layout::IndexSlot* slots_ = nullptr;
  std::uint64_t count_ = 0;
  const std::atomic<std::uint64_t>* moves_ = nullptr;
  const layout::TagWord* tags_ = nullptr;
};

// The marks of keys that clients are computing.
class MarkReader {
 public:
  MarkReader() = default;
  MarkReader(const layout::MarkRow* rows, std::uint64_t buckets, const std::atomic<std::uint64_t>* live) noexcept
      : rows_(rows), buckets_(buckets), live_(live) {}

  // False: the segment is of a kvmd that knows no marks.
  bool exist() const noexcept { return buckets_ != 0; }
  // False: nothing is marked, so no key need be looked up.
  bool any() const noexcept { return buckets_ != 0 && live_->load(std::memory_order_relaxed) != 0; }
  // The mark of `key`, if it has one that has not expired at `now_ns` (CLOCK_MONOTONIC).
  bool Find(const BlockKey& key, std::uint64_t now_ns, layout::MarkInfo& out) const noexcept;

 private:
  const layout::MarkRow* rows_ = nullptr;
  std::uint64_t buckets_ = 0;
  const std::atomic<std::uint64_t>* live_ = nullptr;
};

class RegistryView {
 public:
  RegistryView() = default;
  // kProtocol: it is no registry segment, or its offsets leave the segment. kVersionMismatch:
  // another layout.
  [[nodiscard]] static Result<RegistryView> Open(MappedMemory memory);

  explicit operator bool() const noexcept { return memory_ != nullptr; }
  const layout::RegistryHeader& header() const noexcept { return *reinterpret_cast<const layout::RegistryHeader*>(memory_->data()); }
  const IndexReader& index() const noexcept { return index_; }
  // Whether at most a quarter of the index's slots are taken, as kvmd says: seven of eight keys or
  // more are then at their home, and most others beside it.
  bool nearly_empty() const noexcept {
    return memory_ == nullptr || header().live_entries.load(std::memory_order_relaxed) <= index_.slots() / 4;
  }
  const MarkReader& marks() const noexcept { return marks_; }
  std::uint32_t model_rows() const noexcept { return model_rows_; }
  std::uint32_t region_rows() const noexcept { return region_rows_; }

  // False: the row is free or out of range, or the writer is in the middle of a write.
  bool ReadModel(std::uint32_t row, layout::ModelInfo& out) const noexcept;
  bool ReadRegion(std::uint32_t row, layout::RegionInfo& out) const noexcept;

  layout::SegmentState state() const noexcept { return static_cast<layout::SegmentState>(header().state.load(std::memory_order_acquire)); }

 private:
  std::shared_ptr<const MappedMemory> memory_;
  const layout::ModelRow* models_ = nullptr;
  const layout::RegionRow* regions_ = nullptr;
  std::uint32_t model_rows_ = 0, region_rows_ = 0;
  IndexReader index_;
  MarkReader marks_;
};

}  // namespace kvm
