#include "proto/shm/registry_view.h"

#include <algorithm>
#include <cstring>

namespace kvm {
namespace {

using layout::IndexSlot;

constexpr int kSlotRetries = 64;
constexpr int kMoveRetries = 16;
// Clusters of this length do not occur at the load that kvmd allows; the bound keeps a damaged
// segment from stalling a reader.
constexpr std::uint64_t kMaxProbes = 4096;

// So many slots with the key's tag are looked at before all of its chain is. Of a hundred keys, one
// has another key in the first of them.
constexpr int kMaxWrongHints = 4;

enum class SlotState { kEmpty, kOther, kMatch, kBusy };

void CopyFields(const IndexSlot& slot, IndexHit& out) noexcept {
  out.generation = slot.generation.load(std::memory_order_relaxed);
  out.region = slot.region.load(std::memory_order_relaxed);
  out.block = slot.block.load(std::memory_order_relaxed);
  out.more = slot.flags.load(std::memory_order_relaxed) & IndexSlot::kMore;
}

void CopyFields(const IndexSlot& slot, IndexEntry& out) noexcept {
  out.key = {slot.key_lo.load(std::memory_order_relaxed), slot.key_hi.load(std::memory_order_relaxed)};
  out.generation = slot.generation.load(std::memory_order_relaxed);
  out.parent_lo = slot.parent_lo.load(std::memory_order_relaxed);
  out.region = slot.region.load(std::memory_order_relaxed);
  out.block = slot.block.load(std::memory_order_relaxed);
  out.depth = slot.depth.load(std::memory_order_relaxed);
  out.published_s = slot.published_s.load(std::memory_order_relaxed);
  out.more = (slot.flags.load(std::memory_order_relaxed) & IndexSlot::kMore) != 0;
}

// Copies `slot` if it holds `key`, or if it holds any entry and `key` is null.
template <class Copy>
SlotState Read(const IndexSlot& slot, const BlockKey* key, Copy& out) noexcept {
  for (int attempt = 0; attempt < kSlotRetries; ++attempt) {
    const std::uint32_t version = slot.version.load(std::memory_order_acquire);
    if (version & 1) continue;
    const std::uint32_t region_epoch = slot.region_epoch.load(std::memory_order_relaxed);
    SlotState state = region_epoch == 0 ? SlotState::kEmpty : SlotState::kOther;
    if (region_epoch != 0 && (key == nullptr || (slot.key_lo.load(std::memory_order_relaxed) == key->lo &&
                                                 slot.key_hi.load(std::memory_order_relaxed) == key->hi))) {
      state = SlotState::kMatch;
      out.region_epoch = region_epoch;
      CopyFields(slot, out);
    }
    std::atomic_thread_fence(std::memory_order_acquire);
    if (slot.version.load(std::memory_order_relaxed) == version) return state;
  }
  return SlotState::kBusy;
}

bool Inside(std::uint64_t offset, std::uint64_t count, std::uint64_t item_bytes, std::uint64_t total) {
  return offset >= layout::kHeaderBytes && offset <= total && offset % 64 == 0 && count <= (total - offset) / item_bytes;
}

}  // namespace

std::size_t IndexReader::Find(const BlockKey& key, std::span<IndexHit> out, std::uint64_t hint) const noexcept {
  return FindStable(key, out, hint);
}
std::size_t IndexReader::Find(const BlockKey& key, std::span<IndexEntry> out) const noexcept { return FindStable(key, out, kNoHint); }

std::uint64_t IndexReader::NextTagged(std::uint64_t slot, std::uint64_t tag) const noexcept {
  for (const std::uint64_t end = std::min(count_, slot + kMaxProbes); slot < end; slot += kTagsAtOnce) {
    const std::uint64_t found = TagsFound(TagsFrom(slot), tag);
    if (found == 0) continue;
    slot += TagsBefore(found);
    return slot < end ? slot : kNoHint;
  }
  return kNoHint;
}

template <class Copy>
std::size_t IndexReader::FindStable(const BlockKey& key, std::span<Copy> out, std::uint64_t hint) const noexcept {
  if (count_ == 0 || out.empty()) return 0;
  // Other keys may have the same tag: these slots are passed without reading those between them.
  for (int wrong = 0; hint < count_ && wrong < kMaxWrongHints; ++wrong) {
    if (const std::size_t found = FindOnce(key, out, hint, 1); found != 0) return found;
    if (slots_[hint].region_epoch.load(std::memory_order_relaxed) == 0) break;
    hint = NextTagged(hint + 1, layout::Tag(key));
  }
  for (int attempt = 0;; ++attempt) {
    const std::uint64_t before = moves_->load(std::memory_order_acquire);
    const std::size_t found = FindOnce(key, out, layout::Home(key, count_), kMaxProbes);
    // A hit needs no more checks (each slot was read consistently); a miss may have raced with a
    // move.
    if (found != 0 || attempt == kMoveRetries) return found;
    std::atomic_thread_fence(std::memory_order_acquire);
    if ((before & 1) == 0 && moves_->load(std::memory_order_relaxed) == before) return 0;
  }
}

// Looks for the first replica in `most` slots from `at` on, and then for the others.
template <class Copy>
std::size_t IndexReader::FindOnce(const BlockKey& key, std::span<Copy> out, std::uint64_t at, std::uint64_t most) const noexcept {
  const std::size_t limit = std::min<std::size_t>(out.size(), layout::kMaxReplicas);
  const std::uint64_t probes = std::min(count_, kMaxProbes);
  std::size_t found = 0;
  for (std::uint64_t probe = 0; probe < (found == 0 ? std::min(most, probes) : probes); ++probe, at = at + 1 == count_ ? 0 : at + 1) {
    const SlotState state = Read(slots_[at], &key, out[found]);
    if (state == SlotState::kEmpty) break;
    if (state != SlotState::kMatch) continue;
    ++found;
    if (found == limit || !out[found - 1].more) break;
  }
  return found;
}

bool IndexReader::ReadSlot(std::uint64_t slot, IndexEntry& out) const noexcept {
  return slot < count_ && Read<IndexEntry>(slots_[slot], nullptr, out) == SlotState::kMatch;
}

bool MarkReader::Find(const BlockKey& key, std::uint64_t now_ns, layout::MarkInfo& out) const noexcept {
  if (!any()) return false;
  const layout::MarkRow* bucket = rows_ + layout::MarkBucket(key, buckets_) * layout::kMarksPerBucket;
  for (std::uint64_t i = 0; i < layout::kMarksPerBucket; ++i) {
    if (bucket[i].Read(out) && out.key_lo == key.lo && out.key_hi == key.hi)
      return now_ns < out.expires_ns && out.expires_ns - now_ns <= layout::kLongestMarkNs;
  }
  return false;
}

Result<RegistryView> RegistryView::Open(MappedMemory memory) {
  if (memory.size() < layout::kHeaderBytes) return MakeError(Errc::kProtocol, "registry segment: too small");
  RegistryView view;
  view.memory_ = std::make_shared<const MappedMemory>(std::move(memory));
  const layout::RegistryHeader& header = view.header();
  const std::uint64_t total = view.memory_->size();
  if (header.magic != layout::kRegistryMagic) return MakeError(Errc::kProtocol, "registry segment: wrong magic");
  if (header.layout_version != layout::kLayoutVersion) {
    return MakeError(Errc::kVersionMismatch, "registry segment: layout version " + std::to_string(header.layout_version) +
                                                 ", this build reads " + std::to_string(layout::kLayoutVersion));
  }
  if (header.header_bytes != layout::kHeaderBytes || header.segment_bytes > total ||
      std::memchr(header.domain, '\0', sizeof(header.domain)) == nullptr || header.index_slots == 0 ||
      header.index_entries >= header.index_slots) {
    return MakeError(Errc::kProtocol, "registry segment: header contradicts itself");
  }
  if (!Inside(header.model_rows_offset, header.model_rows, sizeof(layout::ModelRow), header.segment_bytes) ||
      !Inside(header.region_rows_offset, header.region_rows, sizeof(layout::RegionRow), header.segment_bytes) ||
      !Inside(header.index_offset, header.index_slots, sizeof(IndexSlot), header.segment_bytes) ||
      !Inside(header.tags_offset, layout::TagWords(header.index_slots), sizeof(layout::TagWord), header.segment_bytes) ||
      (header.mark_buckets != 0 &&
       !Inside(header.marks_offset, header.mark_buckets, layout::kMarksPerBucket * sizeof(layout::MarkRow), header.segment_bytes))) {
    return MakeError(Errc::kProtocol, "registry segment: a table leaves the segment");
  }
  const std::byte* base = view.memory_->data();
  view.models_ = reinterpret_cast<const layout::ModelRow*>(base + header.model_rows_offset);
  view.regions_ = reinterpret_cast<const layout::RegionRow*>(base + header.region_rows_offset);
  view.model_rows_ = header.model_rows;
  view.region_rows_ = header.region_rows;
  view.index_ = IndexReader(reinterpret_cast<const IndexSlot*>(base + header.index_offset), header.index_slots, &header.index_moves,
                            reinterpret_cast<const layout::TagWord*>(base + header.tags_offset));
  view.marks_ = MarkReader(reinterpret_cast<const layout::MarkRow*>(base + header.marks_offset), header.mark_buckets, &header.live_marks);
  return view;
}

bool RegistryView::ReadModel(std::uint32_t row, layout::ModelInfo& out) const noexcept {
  return row < model_rows_ && models_[row].Read(out) && out.state != 0 && out.spec_bytes <= sizeof(out.spec);
}

bool RegistryView::ReadRegion(std::uint32_t row, layout::RegionInfo& out) const noexcept {
  if (row >= region_rows_ || !regions_[row].Read(out) || out.state == static_cast<std::uint32_t>(layout::RegionState::kFree)) return false;
  out.name[sizeof(out.name) - 1] = '\0';
  return true;
}

}  // namespace kvm
