#include "daemon/host_cache/slot_table.h"

#include <algorithm>
#include <utility>

namespace kvm::daemon {
namespace {

using policy::Slot;

// The first capacity, in slabs; a policy's memory is proportional to its capacity
constexpr std::uint32_t kFirstSlabs = 4;
// Prefixes are followed this far up. Clients name the parents, so two blocks may even name each
// other as parent.
constexpr std::size_t kLongestPath = 16'384;
// How many blocks one call of Use follows to their prefixes; the policy is told of further blocks
// without their prefixes.
constexpr std::size_t kMostAtOnce = 32'768;
// Within this time, another use of a prefix by a store does not count.
constexpr std::uint64_t kOneUseMs = 1000;

}  // namespace

SlotTable::SlotTable(policy::PolicyKind kind, std::uint32_t slots_per_slab, std::uint32_t most_slabs)
    : kind_(kind), slots_per_slab_(slots_per_slab), most_slabs_(most_slabs) {}

std::uint32_t SlotTable::AddSlab() {
  std::uint32_t position = 0;
  while (position < slabs_.size() && slabs_[position].present) ++position;
  if (position == slabs_.size()) Grow();
  Slab& slab = slabs_[position];
  slab.present = true;
  slab.free.resize(slots_per_slab_);
  // Slots are granted in ascending order, so that blocks of a prefix lie side by side.
  for (std::uint32_t i = 0; i < slots_per_slab_; ++i) slab.free[i] = slots_per_slab_ - 1 - i;
  return position;
}

std::uint32_t SlotTable::AddUnknownSlab() {
  const std::uint32_t position = AddSlab();
  slabs_[position].free.clear();
  for (std::uint32_t i = 0; i < slots_per_slab_; ++i) slots_[SlotAt(position, i)].state = CacheSlot::State::kUnknown;
  return position;
}

// A policy's capacity is fixed. No block has been evicted while there was room to grow, so a new
// policy only has to be told of the stored blocks, in the order of their use.
void SlotTable::Grow() {
  const std::size_t wanted = std::min<std::size_t>(most_slabs_, std::max<std::size_t>(kFirstSlabs, 2 * slabs_.size()));
  const std::size_t slabs = std::max(wanted, slabs_.size() + 1);
  slabs_.resize(slabs);
  slots_.resize(slabs * slots_per_slab_);
  policy_ = policy::MakePolicy(kind_, static_cast<std::uint32_t>(slots_.size()));
  std::vector<Slot> listed;
  for (Slot slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].listed) listed.push_back(slot);
  }
  std::sort(listed.begin(), listed.end(), [&](Slot a, Slot b) {
    const CacheSlot &at = slots_[a], &other = slots_[b];
    if (at.used_ms != other.used_ms) return at.used_ms < other.used_ms;
    const bool first_to_last = policy_->order() == policy::Order::kFirstToLast;
    return first_to_last ? at.record.depth < other.record.depth : at.record.depth > other.record.depth;
  });
  for (const Slot slot : listed) policy_->OnInsert(slot, BlockIn(slot));
}

void SlotTable::RemoveSlab(std::uint32_t position) {
  for (std::uint32_t i = 0; i < slots_per_slab_; ++i) {
    const Slot slot = SlotAt(position, i);
    if (slots_[slot].state != CacheSlot::State::kFree) Free(slot);
    slots_[slot] = CacheSlot{};
  }
  slabs_[position] = Slab{};
}

std::optional<Slot> SlotTable::Find(const BlockKey& key) const {
  const auto found = by_key_.find(key.lo);
  if (found == by_key_.end() || slots_[found->second].record.key != key) return std::nullopt;
  return found->second;
}

std::optional<Slot> SlotTable::Grant(std::uint32_t position, const PublishRecord& record) {
  Slab& slab = slabs_[position];
  if (slab.free.empty()) return std::nullopt;
  const Slot slot = SlotAt(position, slab.free.back());
  slab.free.pop_back();
  slots_[slot] = CacheSlot{};
  slots_[slot].state = CacheSlot::State::kGranted;
  slots_[slot].record = record;
  if (const auto parent = by_key_.find(record.parent_lo); record.depth > 0 && parent != by_key_.end()) ++slots_[parent->second].coming;
  by_key_.emplace(record.key.lo, slot);
  return slot;
}

// Called when the policy knows the block in `slot`, or never will.
void SlotTable::HasCome(Slot slot) {
  const PublishRecord& record = slots_[slot].record;
  const auto parent = by_key_.find(record.parent_lo);
  if (record.depth > 0 && parent != by_key_.end() && slots_[parent->second].coming > 0) --slots_[parent->second].coming;
}

void SlotTable::Expire(Slot slot) {
  CacheSlot& at = slots_[slot];
  HasCome(slot);
  at.state = CacheSlot::State::kExpired;
  // Another client may store the block now.
  if (const auto found = by_key_.find(at.record.key.lo); found != by_key_.end() && found->second == slot) by_key_.erase(found);
}

bool SlotTable::Pin(Slot slot) noexcept {
  CacheSlot& at = slots_[slot];
  if (at.state != CacheSlot::State::kStored) return false;
  if (at.pins++ == 0) ++slabs_[PositionOf(slot)].pinned;
  return true;
}

void SlotTable::Unpin(Slot slot) noexcept {
  CacheSlot& at = slots_[slot];
  if (at.pins > 0 && --at.pins == 0) --slabs_[PositionOf(slot)].pinned;
}

void SlotTable::Commit(Slot slot) {
  slots_[slot].state = CacheSlot::State::kStored;
  ++stored_;
}

bool SlotTable::Restore(Slot slot, const PublishRecord& record) {
  if (!by_key_.emplace(record.key.lo, slot).second) return false;
  CacheSlot& at = slots_[slot];
  at.record = record;
  at.state = CacheSlot::State::kStored;
  if (const auto parent = by_key_.find(record.parent_lo); record.depth > 0 && parent != by_key_.end()) ++slots_[parent->second].coming;
  ++stored_;
  return true;
}

void SlotTable::Free(Slot slot) {
  CacheSlot& at = slots_[slot];
  if (at.state == CacheSlot::State::kFree) return;
  if (!at.listed && (at.state == CacheSlot::State::kGranted || at.state == CacheSlot::State::kStored)) HasCome(slot);
  if (const auto found = by_key_.find(at.record.key.lo); found != by_key_.end() && found->second == slot) by_key_.erase(found);
  if (at.listed) policy_->OnErase(slot);
  if (at.state == CacheSlot::State::kStored) --stored_;
  at.listed = false;
  if (std::exchange(at.pins, 0) > 0) --slabs_[PositionOf(slot)].pinned;
  at.coming = 0;
  at.state = CacheSlot::State::kFree;
  slabs_[PositionOf(slot)].free.push_back(InSlab(slot));
}

policy::Block SlotTable::BlockIn(Slot slot) const {
  const PublishRecord& record = slots_[slot].record;
  // The parent of a chain's first block is the root, which is no block.
  return {record.key.lo, record.depth == 0 ? policy::kNoKey : record.parent_lo, record.depth};
}

void SlotTable::Use(std::span<const Slot> slots, std::uint64_t now_ms, bool imported) {
  // The paths are followed from the last slot backwards: a slot that lies on a later slot's path
  // has been told with that path.
  std::vector<Slot> path;
  std::vector<bool> done(slots.size());
  std::unordered_map<Slot, std::size_t> given;
  for (std::size_t i = 0; i < slots.size(); ++i) given.emplace(slots[i], i);
  std::size_t told = 0;
  for (std::size_t i = slots.size(); i-- > 0;) {
    if (done[i] || slots_[slots[i]].state != CacheSlot::State::kStored) continue;
    path.clear();
    std::uint32_t depth = slots_[slots[i]].record.depth;
    for (Slot at = slots[i]; path.size() < kLongestPath;) {
      path.push_back(at);
      ++told;
      if (const auto known = given.find(at); known != given.end()) done[known->second] = true;
      const PublishRecord& record = slots_[at].record;
      const auto parent = record.depth == 0 ? by_key_.end() : by_key_.find(record.parent_lo);
      if (parent == by_key_.end() || told >= kMostAtOnce) break;
      at = parent->second;
      // Depths decrease along the path, so the loop ends, whatever parents clients name.
      if (slots_[at].state != CacheSlot::State::kStored || slots_[at].record.depth >= depth) break;
      depth = slots_[at].record.depth;
    }
    std::reverse(path.begin(), path.end());
    UsePath(path, now_ms, imported);
  }
}

void SlotTable::UsePath(std::vector<Slot>& path, std::uint64_t now_ms, bool imported) {
  std::vector<policy::Block> blocks;
  blocks.reserve(path.size());
  for (const Slot slot : path) blocks.push_back(BlockIn(slot));
  policy_->OnRequest(blocks);
  if (policy_->order() == policy::Order::kLastToFirst) {
    std::reverse(path.begin(), path.end());
    std::reverse(blocks.begin(), blocks.end());
  }
  for (std::size_t i = 0; i < path.size(); ++i) {
    CacheSlot& at = slots_[path[i]];
    if (!at.listed) {
      at.listed = true;
      HasCome(path[i]);
      policy_->OnInsert(path[i], blocks[i]);
    } else if (imported || !policy_->counts_uses() || at.used_ms + kOneUseMs <= now_ms) {
      policy_->OnHit(path[i]);
    }
    at.used_ms = now_ms;
  }
}

std::optional<Slot> SlotTable::ChooseVictim(std::span<const std::uint32_t> positions, const PublishRecord& wanted) {
  if (!policy_) return std::nullopt;
  std::vector<bool> among(slabs_.size());
  for (const std::uint32_t position : positions) among[position] = true;
  const auto found = by_key_.find(wanted.parent_lo);
  const Slot parent = wanted.depth > 0 && found != by_key_.end() ? found->second : policy::kNoSlot;
  const auto may_leave = [&](Slot slot) {
    const CacheSlot& at = slots_[slot];
    return slot != parent && at.pins == 0 && at.coming == 0 && at.listed && at.state == CacheSlot::State::kStored &&
           among[PositionOf(slot)];
  };
  const Slot victim = policy_->ChooseVictimAmong(may_leave);
  if (victim != policy::kNoSlot) return victim;
  // The policy's candidates are all pinned: choose the block that was used least recently.
  std::optional<Slot> oldest;
  for (const std::uint32_t position : positions) {
    for (Slot slot = SlotAt(position, 0); slot < SlotAt(position + 1, 0); ++slot) {
      if (may_leave(slot) && (!oldest || slots_[slot].used_ms < slots_[*oldest].used_ms)) oldest = slot;
    }
  }
  return oldest;
}

}  // namespace kvm::daemon
