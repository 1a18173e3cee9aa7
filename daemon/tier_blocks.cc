#include "daemon/tier_blocks.h"

#include <algorithm>
#include <utility>

namespace kvm::daemon {
namespace {

using policy::Slot;

constexpr std::uint32_t kFirstChunks = 4;  // room for so many at first; a policy's memory goes with its capacity
// Prefixes are followed this far up. Parents are what clients say they are, so they may even name each other.
constexpr std::size_t kLongestPath = 16'384;
// What one call of Use follows; blocks beyond are told without their prefixes.
constexpr std::size_t kMostAtOnce = 32'768;
// Within this, a prefix that goes on has not been used once more.
constexpr std::uint64_t kOneUseMs = 1000;

}  // namespace

TierBlocks::TierBlocks(policy::PolicyKind kind, std::uint32_t slots_per_chunk, std::uint32_t most_chunks)
    : kind_(kind), slots_per_chunk_(slots_per_chunk), most_chunks_(most_chunks) {}

std::uint32_t TierBlocks::AddChunk() {
  std::uint32_t position = 0;
  while (position < chunks_.size() && chunks_[position].present) ++position;
  if (position == chunks_.size()) Grow();
  Chunk& chunk = chunks_[position];
  chunk.present = true;
  chunk.free.resize(slots_per_chunk_);
  // Handed out in ascending order, so that blocks of a prefix lie side by side.
  for (std::uint32_t i = 0; i < slots_per_chunk_; ++i) chunk.free[i] = slots_per_chunk_ - 1 - i;
  return position;
}

std::uint32_t TierBlocks::AddUnknownChunk() {
  const std::uint32_t position = AddChunk();
  chunks_[position].free.clear();
  for (std::uint32_t i = 0; i < slots_per_chunk_; ++i) slots_[SlotAt(position, i)].state = TierSlot::State::kUnknown;
  return position;
}

// A policy's capacity is fixed. Nothing has been evicted while there was room to grow, so that all a new one has to be
// told is what is held, in the order of its use.
void TierBlocks::Grow() {
  const std::size_t wanted = std::min<std::size_t>(most_chunks_, std::max<std::size_t>(kFirstChunks, 2 * chunks_.size()));
  const std::size_t chunks = std::max(wanted, chunks_.size() + 1);
  chunks_.resize(chunks);
  slots_.resize(chunks * slots_per_chunk_);
  policy_ = policy::MakePolicy(kind_, static_cast<std::uint32_t>(slots_.size()));
  std::vector<Slot> listed;
  for (Slot slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].listed) listed.push_back(slot);
  }
  std::sort(listed.begin(), listed.end(), [&](Slot a, Slot b) {
    const TierSlot &at = slots_[a], &other = slots_[b];
    if (at.used_ms != other.used_ms) return at.used_ms < other.used_ms;
    const bool first_to_last = policy_->order() == policy::Order::kFirstToLast;
    return first_to_last ? at.record.depth < other.record.depth : at.record.depth > other.record.depth;
  });
  for (const Slot slot : listed) policy_->OnInsert(slot, BlockIn(slot));
}

void TierBlocks::RemoveChunk(std::uint32_t position) {
  for (std::uint32_t i = 0; i < slots_per_chunk_; ++i) {
    const Slot slot = SlotAt(position, i);
    if (slots_[slot].state != TierSlot::State::kFree) Free(slot);
    slots_[slot] = TierSlot{};
  }
  chunks_[position] = Chunk{};
}

std::optional<Slot> TierBlocks::Find(const BlockKey& key) const {
  const auto found = by_key_.find(key.lo);
  if (found == by_key_.end() || slots_[found->second].record.key != key) return std::nullopt;
  return found->second;
}

std::optional<Slot> TierBlocks::Grant(std::uint32_t position, const PublishRecord& record) {
  Chunk& chunk = chunks_[position];
  if (chunk.free.empty()) return std::nullopt;
  const Slot slot = SlotAt(position, chunk.free.back());
  chunk.free.pop_back();
  slots_[slot] = TierSlot{};
  slots_[slot].state = TierSlot::State::kGranted;
  slots_[slot].record = record;
  if (const auto parent = by_key_.find(record.parent_lo); record.depth > 0 && parent != by_key_.end()) ++slots_[parent->second].coming;
  by_key_.emplace(record.key.lo, slot);
  return slot;
}

// The block in `slot` is known to the policy, or will never be.
void TierBlocks::HasCome(Slot slot) {
  const PublishRecord& record = slots_[slot].record;
  const auto parent = by_key_.find(record.parent_lo);
  if (record.depth > 0 && parent != by_key_.end() && slots_[parent->second].coming > 0) --slots_[parent->second].coming;
}

void TierBlocks::Expire(Slot slot) {
  TierSlot& at = slots_[slot];
  HasCome(slot);
  at.state = TierSlot::State::kExpired;
  // Somebody else may store the block now.
  if (const auto found = by_key_.find(at.record.key.lo); found != by_key_.end() && found->second == slot) by_key_.erase(found);
}

bool TierBlocks::Pin(Slot slot) noexcept {
  TierSlot& at = slots_[slot];
  if (at.state != TierSlot::State::kHeld) return false;
  if (at.pins++ == 0) ++chunks_[PositionOf(slot)].pinned;
  return true;
}

void TierBlocks::Unpin(Slot slot) noexcept {
  TierSlot& at = slots_[slot];
  if (at.pins > 0 && --at.pins == 0) --chunks_[PositionOf(slot)].pinned;
}

void TierBlocks::Hold(Slot slot) {
  slots_[slot].state = TierSlot::State::kHeld;
  ++held_;
}

bool TierBlocks::Restore(Slot slot, const PublishRecord& record) {
  if (!by_key_.emplace(record.key.lo, slot).second) return false;
  TierSlot& at = slots_[slot];
  at.record = record;
  at.state = TierSlot::State::kHeld;
  if (const auto parent = by_key_.find(record.parent_lo); record.depth > 0 && parent != by_key_.end()) ++slots_[parent->second].coming;
  ++held_;
  return true;
}

void TierBlocks::Free(Slot slot) {
  TierSlot& at = slots_[slot];
  if (at.state == TierSlot::State::kFree) return;
  if (!at.listed && (at.state == TierSlot::State::kGranted || at.state == TierSlot::State::kHeld)) HasCome(slot);
  if (const auto found = by_key_.find(at.record.key.lo); found != by_key_.end() && found->second == slot) by_key_.erase(found);
  if (at.listed) policy_->OnErase(slot);
  if (at.state == TierSlot::State::kHeld) --held_;
  at.listed = false;
  if (std::exchange(at.pins, 0) > 0) --chunks_[PositionOf(slot)].pinned;
  at.coming = 0;
  at.state = TierSlot::State::kFree;
  chunks_[PositionOf(slot)].free.push_back(InChunk(slot));
}

policy::Block TierBlocks::BlockIn(Slot slot) const {
  const PublishRecord& record = slots_[slot].record;
  // The root of a chain is no block.
  return {record.key.lo, record.depth == 0 ? policy::kNoKey : record.parent_lo, record.depth};
}

void TierBlocks::Use(std::span<const Slot> slots, std::uint64_t now_ms, bool imported) {
  // From the last one up: what lies on its path has been told with it.
  std::vector<Slot> path;
  std::vector<bool> done(slots.size());
  std::unordered_map<Slot, std::size_t> given;
  for (std::size_t i = 0; i < slots.size(); ++i) given.emplace(slots[i], i);
  std::size_t told = 0;
  for (std::size_t i = slots.size(); i-- > 0;) {
    if (done[i] || slots_[slots[i]].state != TierSlot::State::kHeld) continue;
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
      // Depths fall, so this ends whatever clients say.
      if (slots_[at].state != TierSlot::State::kHeld || slots_[at].record.depth >= depth) break;
      depth = slots_[at].record.depth;
    }
    std::reverse(path.begin(), path.end());
    UsePath(path, now_ms, imported);
  }
}

void TierBlocks::UsePath(std::vector<Slot>& path, std::uint64_t now_ms, bool imported) {
  std::vector<policy::Block> blocks;
  blocks.reserve(path.size());
  for (const Slot slot : path) blocks.push_back(BlockIn(slot));
  policy_->OnRequest(blocks);
  if (policy_->order() == policy::Order::kLastToFirst) {
    std::reverse(path.begin(), path.end());
    std::reverse(blocks.begin(), blocks.end());
  }
  for (std::size_t i = 0; i < path.size(); ++i) {
    TierSlot& at = slots_[path[i]];
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

std::optional<Slot> TierBlocks::ChooseVictim(std::span<const std::uint32_t> positions, const PublishRecord& wanted) {
  if (!policy_) return std::nullopt;
  std::vector<bool> among(chunks_.size());
  for (const std::uint32_t position : positions) among[position] = true;
  const auto found = by_key_.find(wanted.parent_lo);
  const Slot parent = wanted.depth > 0 && found != by_key_.end() ? found->second : policy::kNoSlot;
  const auto may_leave = [&](Slot slot) {
    const TierSlot& at = slots_[slot];
    return slot != parent && at.pins == 0 && at.coming == 0 && at.listed && at.state == TierSlot::State::kHeld && among[PositionOf(slot)];
  };
  const Slot victim = policy_->ChooseVictimAmong(may_leave);
  if (victim != policy::kNoSlot) return victim;
  // What may leave lies far behind what may not: the one used least recently, then.
  std::optional<Slot> oldest;
  for (const std::uint32_t position : positions) {
    for (Slot slot = SlotAt(position, 0); slot < SlotAt(position + 1, 0); ++slot) {
      if (may_leave(slot) && (!oldest || slots_[slot].used_ms < slots_[*oldest].used_ms)) oldest = slot;
    }
  }
  return oldest;
}

}  // namespace kvm::daemon
