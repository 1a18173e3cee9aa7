#include "daemon/host_cache/slot_table.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "daemon/system/work_meter.h"

namespace kvm::daemon {
namespace {

using policy::Slot;

// The first capacity: so many slabs, or of large ones as many as have so many slots. A policy's
// memory is proportional to its capacity.
constexpr std::uint32_t kFirstSlabs = 4, kFirstSlots = 4096;
// Prefixes are followed this far up. Clients name the parents, so two blocks may even name each
// other as parent.
constexpr std::size_t kLongestPath = 16'384;
// What one call of Use follows; blocks beyond are told without their prefixes.
constexpr std::size_t kMostAtOnce = kLongestPath;
// How far a block that may leave from now on is moved up among the others, to stand where its last
// use puts it.
constexpr int kMostPlaces = 32;
// Within this, a prefix that goes on has not been used once more.
constexpr std::uint64_t kOneUseMs = 1000;
constexpr WorkUnits kTellUnits = 8;  // to tell a policy of one block

}  // namespace

SlotTable::SlotTable(policy::PolicyKind kind, std::uint32_t slots_per_slab, std::uint32_t most_slabs, MemoryFreer& freer)
    : kind_(kind), slots_per_slab_(slots_per_slab), most_slabs_(most_slabs), freer_(freer), slots_(slots_per_slab) {}

std::uint32_t SlotTable::AddSlab() {
  std::uint32_t position = 0;
  while (position < slabs_.size() && slabs_[position].present) ++position;
  if (position == slabs_.size()) {
    slots_.AddSlab();
    slabs_.emplace_back();
    if (slabs_.size() > capacity_) Grow();
  }
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

// A policy's capacity is fixed. A new one is told of the stored blocks in the order of their use:
// a slice of them at once, the others in Work, and last those that are used meanwhile.
void SlotTable::Grow() {
  const auto slabs = static_cast<std::uint32_t>(slabs_.size());
  const std::uint32_t first = std::clamp(kFirstSlots / slots_per_slab_, 1u, kFirstSlabs);
  const std::size_t bytes_before = bytes();
  capacity_ = std::max(slabs, std::min(most_slabs_, std::max(first, 2 * capacity_)));
  std::unique_ptr<policy::EvictionPolicy> before = std::exchange(policy_, policy::MakePolicy(kind_, capacity_ * slots_per_slab_));
  if (before) freer_.Destroy(std::move(before), bytes_before);
  ++policies_;
  // Those that were late for the policy before are as the others.
  if (untold_) {
    for (const Slot slot : untold_->late) slots_[slot].late = false;
  }
  untold_.reset();
  if (slabs > 1) untold_.emplace();
  static_cast<void>(Work(WorkBudget()));
}

bool SlotTable::Work(const WorkBudget& budget) {
  if (!untold_) return false;
  // A new slab has blocks that the policy has been told of, or none.
  for (; untold_->next_slab < slabs_.size(); ++untold_->next_slab) {
    if (budget.used_up()) return true;
    SortSlab(untold_->next_slab);
  }
  const auto later = [this](std::uint32_t a, std::uint32_t b) { return ComesLater(a, b); };
  std::vector<std::uint32_t>& heap = untold_->by_last_use;
  while (!heap.empty()) {
    if (budget.used_up()) return true;
    std::pop_heap(heap.begin(), heap.end(), later);
    std::vector<Slot>& of_slab = untold_->sorted[heap.back()];
    const Slot slot = of_slab.back();
    of_slab.pop_back();
    if (of_slab.empty()) {
      heap.pop_back();
    } else {
      std::push_heap(heap.begin(), heap.end(), later);
    }
    Spend(kTellUnits);
    if (slots_[slot].listed && slots_[slot].told != policies_) Tell(slot);
  }
  for (std::deque<Slot>& late = untold_->late; !late.empty(); late.pop_front()) {
    if (budget.used_up()) return true;
    Spend(kTellUnits);
    const Slot slot = late.front();
    if (!std::exchange(slots_[slot].late, false) || !slots_[slot].listed) continue;
    slots_[slot].told == policies_ ? policy_->OnHit(slot) : Tell(slot);
  }
  untold_.reset();
  return false;
}

// The slots of one slab that the policy does not know.
void SlotTable::SortSlab(std::uint32_t position) {
  Spend(slots_per_slab_);
  std::vector<std::pair<LastUse, Slot>> uses;
  for (std::uint32_t i = 0; i < slots_per_slab_; ++i) {
    const Slot slot = SlotAt(position, i);
    if (slots_[slot].listed && slots_[slot].told != policies_) uses.emplace_back(UseOf(slot), slot);
  }
  std::sort(uses.begin(), uses.end(), std::greater<>());
  std::vector<Slot>& of_slab = untold_->sorted.emplace_back();
  of_slab.reserve(uses.size());
  for (const auto& [use, slot] : uses) of_slab.push_back(slot);
  if (of_slab.empty()) return;
  std::vector<std::uint32_t>& heap = untold_->by_last_use;
  heap.push_back(position);
  std::push_heap(heap.begin(), heap.end(), [this](std::uint32_t a, std::uint32_t b) { return ComesLater(a, b); });
}

// Of two slabs: whether the next slot to tell of is `b`'s.
bool SlotTable::ComesLater(std::uint32_t a, std::uint32_t b) const noexcept {
  return UseOf(untold_->sorted[b].back()) < UseOf(untold_->sorted[a].back());
}

// The policy is told of a request from its first block to its last, or the other way.
SlotTable::LastUse SlotTable::UseOf(Slot slot) const noexcept {
  const CacheSlot& at = slots_[slot];
  return {at.used_ms, policy_->order() == policy::Order::kFirstToLast ? at.record.depth : ~at.record.depth};
}

void SlotTable::Tell(Slot slot) {
  slots_[slot].told = policies_;
  policy_->OnInsert(slot, BlockIn(slot));
}

void SlotTable::RemoveSlab(std::uint32_t position) {
  Spend(2 * slots_per_slab_);
  for (std::uint32_t i = 0; i < slots_per_slab_; ++i) {
    const Slot slot = SlotAt(position, i);
    if (slots_[slot].state != CacheSlot::State::kFree) Free(slot);
    slots_[slot] = CacheSlot{};
  }
  slabs_[position] = Slab{};
}

std::optional<Slot> SlotTable::Find(const BlockKey& key) const {
  const std::optional<Slot> found = by_key_.Find(key.lo);
  return found && slots_[*found].record.key == key ? found : std::nullopt;
}

std::optional<Slot> SlotTable::Grant(std::uint32_t position, const PublishRecord& record) {
  Slab& slab = slabs_[position];
  if (slab.free.empty()) return std::nullopt;
  const Slot slot = SlotAt(position, slab.free.back());
  slab.free.pop_back();
  slots_[slot] = CacheSlot{};
  SetState(slot, CacheSlot::State::kGranted);
  slots_[slot].record = record;
  IsComing(record);
  static_cast<void>(by_key_.Add(record.key.lo, slot));
  return slot;
}

void SlotTable::SetState(Slot slot, CacheSlot::State state) noexcept {
  using State = CacheSlot::State;
  Slab& slab = slabs_[PositionOf(slot)];
  const State before = std::exchange(slots_[slot].state, state);
  slab.granted += (state == State::kGranted) - (before == State::kGranted);
  slab.expired += (state == State::kExpired) - (before == State::kExpired);
}

// After each change of what the answer depends on.
void SlotTable::NoteWhetherItMayLeave(Slot slot) noexcept {
  CacheSlot& at = slots_[slot];
  const bool may = at.state == CacheSlot::State::kStored && at.listed && at.pins == 0 && at.coming == 0;
  if (may == at.may_leave) return;
  if (may) return LetLeave(slot);
  KeepFromLeaving(slot);
}

// Into the slab's list, about where the time of its last use puts it.
void SlotTable::LetLeave(Slot slot) noexcept {
  slots_[slot].may_leave = true;
  const auto links = Leaving();
  policy::ListEnds& list = slabs_[PositionOf(slot)].may_leave;
  // Of those that one request used, the end of the prefix goes first.
  const auto before = [&](Slot other) {
    const CacheSlot &one = slots_[slot], &two = slots_[other];
    return one.used_ms != two.used_ms ? one.used_ms < two.used_ms : one.record.depth > two.record.depth;
  };
  if (list.empty() || before(list.back)) return policy::PushBack(list, slot, links);
  Slot newer = list.front;
  for (int places = 0; places < kMostPlaces && before(newer); ++places) newer = slots_[newer].leaving.older;
  if (newer == list.front) return policy::PushFront(list, slot, links);
  policy::InsertBehind(list, slots_[newer].leaving.newer, slot, links);
}

// Out of the slab's list.
void SlotTable::KeepFromLeaving(Slot slot) noexcept {
  slots_[slot].may_leave = false;
  policy::Unlink(slabs_[PositionOf(slot)].may_leave, slot, Leaving());
}

// The policy will be told of the block of `record`: until then its parent stays.
void SlotTable::IsComing(const PublishRecord& record) noexcept {
  const std::optional<Slot> parent = record.depth == 0 ? std::nullopt : by_key_.Find(record.parent_lo);
  if (!parent) return;
  ++slots_[*parent].coming;
  NoteWhetherItMayLeave(*parent);
}

// The block in `slot` is known to the policy, or will never be.
void SlotTable::HasCome(Slot slot) {
  const PublishRecord& record = slots_[slot].record;
  const std::optional<Slot> parent = record.depth == 0 ? std::nullopt : by_key_.Find(record.parent_lo);
  if (!parent || slots_[*parent].coming == 0) return;
  --slots_[*parent].coming;
  NoteWhetherItMayLeave(*parent);
}

void SlotTable::Expire(Slot slot) {
  CacheSlot& at = slots_[slot];
  HasCome(slot);
  SetState(slot, CacheSlot::State::kExpired);
  // Another client may store the block now.
  by_key_.Remove(at.record.key.lo, slot);
}

bool SlotTable::Pin(Slot slot) noexcept {
  CacheSlot& at = slots_[slot];
  if (at.state != CacheSlot::State::kStored) return false;
  if (at.pins++ == 0) ++slabs_[PositionOf(slot)].pinned;
  NoteWhetherItMayLeave(slot);
  return true;
}

void SlotTable::Unpin(Slot slot) noexcept {
  CacheSlot& at = slots_[slot];
  if (at.pins > 0 && --at.pins == 0) --slabs_[PositionOf(slot)].pinned;
  NoteWhetherItMayLeave(slot);
}

void SlotTable::Commit(Slot slot) {
  SetState(slot, CacheSlot::State::kStored);
  ++stored_;
}

bool SlotTable::Restore(Slot slot, const PublishRecord& record) {
  if (!by_key_.Add(record.key.lo, slot)) return false;
  CacheSlot& at = slots_[slot];
  at.record = record;
  at.state = CacheSlot::State::kStored;
  IsComing(record);
  ++stored_;
  return true;
}

void SlotTable::Free(Slot slot) {
  CacheSlot& at = slots_[slot];
  if (at.state == CacheSlot::State::kFree) return;
  if (!at.listed && (at.state == CacheSlot::State::kGranted || at.state == CacheSlot::State::kStored)) HasCome(slot);
  by_key_.Remove(at.record.key.lo, slot);
  if (at.listed && std::exchange(at.told, 0) == policies_) policy_->OnErase(slot);
  if (at.state == CacheSlot::State::kStored) --stored_;
  at.listed = false;
  if (std::exchange(at.pins, 0) > 0) --slabs_[PositionOf(slot)].pinned;
  at.coming = 0;
  SetState(slot, CacheSlot::State::kFree);
  NoteWhetherItMayLeave(slot);
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
      Spend(1);
      if (const auto known = given.find(at); known != given.end()) done[known->second] = true;
      const PublishRecord& record = slots_[at].record;
      const std::optional<Slot> parent = record.depth == 0 ? std::nullopt : by_key_.Find(record.parent_lo);
      if (!parent || told >= kMostAtOnce) break;
      at = *parent;
      // Depths decrease along the path, so the loop ends, whatever parents clients name.
      if (slots_[at].state != CacheSlot::State::kStored || slots_[at].record.depth >= depth) break;
      depth = slots_[at].record.depth;
    }
    std::reverse(path.begin(), path.end());
    UsePath(path, now_ms, imported);
  }
}

void SlotTable::UsePath(std::vector<Slot>& path, std::uint64_t now_ms, bool imported) {
  Spend(2 * path.size());  // for the policy
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
    }
    if (untold_) {
      if (!std::exchange(at.late, true)) untold_->late.push_back(path[i]);
    } else if (at.told != policies_) {
      at.told = policies_;
      policy_->OnInsert(path[i], blocks[i]);
    } else if (imported || !policy_->counts_uses() || at.used_ms + kOneUseMs <= now_ms) {
      policy_->OnHit(path[i]);
    }
    at.used_ms = now_ms;
    if (at.may_leave) KeepFromLeaving(path[i]);  // its place in the list is that of its last use
    NoteWhetherItMayLeave(path[i]);
  }
}

std::optional<Slot> SlotTable::ChooseVictim(std::span<const std::uint32_t> positions, const PublishRecord& wanted) {
  if (!policy_) return std::nullopt;
  const Slot parent = wanted.depth == 0 ? policy::kNoSlot : by_key_.Find(wanted.parent_lo).value_or(policy::kNoSlot);
  const std::optional<Slot> oldest = OldestThatMayLeave(positions, parent);
  if (!oldest) return std::nullopt;
  std::vector<bool> among(slabs_.size());
  for (const std::uint32_t position : positions) among[position] = true;
  const Slot victim = policy_->ChooseVictimAmong([&](Slot slot) {
    Spend(1);
    return slot != parent && slots_[slot].may_leave && among[PositionOf(slot)];
  });
  // What may leave may lie far behind what may not: the one used least recently, then.
  return victim != policy::kNoSlot ? victim : oldest;
}

std::optional<Slot> SlotTable::OldestThatMayLeave(std::span<const std::uint32_t> positions, Slot but) const noexcept {
  std::optional<Slot> oldest;
  Spend(positions.size());
  for (const std::uint32_t position : positions) {
    Slot slot = slabs_[position].may_leave.back;
    if (slot == but && slot != policy::kNoSlot) slot = slots_[slot].leaving.newer;
    if (slot != policy::kNoSlot && (!oldest || slots_[slot].used_ms < slots_[*oldest].used_ms)) oldest = slot;
  }
  return oldest;
}

}  // namespace kvm::daemon
