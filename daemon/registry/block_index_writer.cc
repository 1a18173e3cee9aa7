#include "daemon/registry/block_index_writer.h"

#include <cassert>
#include <utility>

#include "daemon/system/work_meter.h"
#include "proto/base/fault_point.h"

namespace kvm::daemon {

using layout::IndexSlot;
constexpr auto kRelaxed = std::memory_order_relaxed;

BlockIndexWriter::BlockIndexWriter(IndexSlot* slots, layout::TagWord* tags, std::uint64_t count, std::uint64_t max_entries,
                                   std::atomic<std::uint64_t>* moves, Moved moved)
    : slots_(slots), tags_(tags), count_(count), max_entries_(max_entries), moves_(moves), moved_(std::move(moved)) {
  assert(max_entries < count);
}

BlockKey BlockIndexWriter::KeyAt(std::uint64_t slot) const noexcept {
  return {slots_[slot].key_lo.load(kRelaxed), slots_[slot].key_hi.load(kRelaxed)};
}

IndexEntry BlockIndexWriter::At(std::uint64_t at) const noexcept {
  const IndexSlot& slot = slots_[at];
  IndexEntry entry;
  entry.key = KeyAt(at);
  entry.generation = slot.generation.load(kRelaxed);
  entry.parent_lo = slot.parent_lo.load(kRelaxed);
  entry.region = slot.region.load(kRelaxed);
  entry.region_epoch = slot.region_epoch.load(kRelaxed);
  entry.block = slot.block.load(kRelaxed);
  entry.depth = slot.depth.load(kRelaxed);
  entry.published_s = slot.published_s.load(kRelaxed);
  entry.more = (slot.flags.load(kRelaxed) & IndexSlot::kMore) != 0;
  return entry;
}

void BlockIndexWriter::Write(std::uint64_t at, const IndexEntry& entry) noexcept {
  IndexSlot& slot = slots_[at];
  const std::uint32_t version = slot.version.load(kRelaxed);
  slot.version.store(version + 1, kRelaxed);
  std::atomic_thread_fence(std::memory_order_release);
  slot.region_epoch.store(entry.region_epoch, kRelaxed);
  slot.key_lo.store(entry.key.lo, kRelaxed);
  slot.key_hi.store(entry.key.hi, kRelaxed);
  slot.generation.store(entry.generation, kRelaxed);
  KVM_FAULT_POINT(kvmd_slot_being_written);
  slot.parent_lo.store(entry.parent_lo, kRelaxed);
  slot.region.store(entry.region, kRelaxed);
  slot.block.store(entry.block, kRelaxed);
  slot.depth.store(entry.depth, kRelaxed);
  slot.flags.store(entry.more ? IndexSlot::kMore : 0, kRelaxed);
  slot.published_s.store(entry.published_s, kRelaxed);
  slot.version.store(version + 2, std::memory_order_release);
  KVM_FAULT_POINT(kvmd_slot_written);
  // The tag is written last: a reader that sees it then finds the entry.
  const unsigned shift = static_cast<unsigned>(at % 8) * 8;
  const std::uint64_t tag = entry.region_epoch == 0 ? 0 : layout::Tag(entry.key);
  layout::TagWord& word = tags_[at / 8];
  word.store((word.load(kRelaxed) & ~(std::uint64_t{0xFF} << shift)) | tag << shift, std::memory_order_release);
}

void BlockIndexWriter::SetMore(std::uint64_t at, bool more) noexcept {
  IndexEntry entry = At(at);
  if (entry.more == more) return;
  entry.more = more;
  Write(at, entry);
}

std::size_t BlockIndexWriter::Replicas(const BlockKey& key, std::span<std::uint64_t> out) const noexcept {
  std::size_t found = 0;
  std::uint64_t at = layout::Home(key, count_), distance = 0;
  for (; distance <= kMaxDisplacement && found < out.size() && !Empty(at); ++distance, at = Next(at)) {
    if (KeyAt(at) != key) continue;
    out[found++] = at;
    if ((slots_[at].flags.load(kRelaxed) & IndexSlot::kMore) == 0) break;
  }
  Spend(1 + distance);
  return found;
}

std::uint64_t BlockIndexWriter::Insert(const IndexEntry& entry) noexcept {
  std::uint64_t last = kNoSlot;
  std::uint64_t at = layout::Home(entry.key, count_), distance = 0;
  for (; !Empty(at) && distance < kMaxDisplacement; ++distance, at = Next(at)) {
    if (KeyAt(at) == entry.key) last = at;
  }
  Spend(1 + distance);
  if (!Empty(at)) return kNoSlot;
  IndexEntry added = entry;
  added.more = false;
  Write(at, added);
  if (last != kNoSlot) SetMore(last, true);
  ++entries_;
  return at;
}

void BlockIndexWriter::Update(std::uint64_t at, const IndexEntry& entry) noexcept {
  IndexEntry updated = entry;
  updated.more = At(at).more;
  Write(at, updated);
}

void BlockIndexWriter::Erase(std::uint64_t hole) noexcept {
  const IndexEntry erased = At(hole);
  const std::uint64_t home = layout::Home(erased.key, count_);
  Spend(1 + Distance(home, hole));
  if (!erased.more) {
    // The replica before it becomes the last one.
    std::uint64_t before = kNoSlot;
    for (std::uint64_t at = home; at != hole; at = Next(at)) {
      if (KeyAt(at) == erased.key) before = at;
    }
    if (before != kNoSlot) SetMore(before, false);
  }
  // Moves an entry that may stand in the hole back into it; the hole is then where that entry was.
  // index_moves changes only if an entry moves.
  const std::uint64_t moves = moves_->load(kRelaxed);
  bool moved = false;
  for (std::uint64_t at = Next(hole); !Empty(at) && Distance(hole, at) <= kMaxDisplacement; at = Next(at)) {
    Spend(1);
    const std::uint64_t displacement = Distance(layout::Home(KeyAt(at), count_), at);
    if (displacement < Distance(hole, at)) continue;
    if (!moved) {
      moved = true;
      moves_->store(moves + 1, kRelaxed);
      std::atomic_thread_fence(std::memory_order_release);
    }
    const IndexEntry entry = At(at);
    Write(hole, entry);
    moved_(entry, hole);
    hole = at;
  }
  Write(hole, IndexEntry{});
  if (moved) moves_->store(moves + 2, std::memory_order_release);
  --entries_;
}

}  // namespace kvm::daemon
