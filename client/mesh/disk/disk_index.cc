#include "client/mesh/disk/disk_index.h"

#include <algorithm>
#include <new>
#include <utility>

namespace kvm::mesh {
namespace {

policy::Block ForPolicy(const DiskBlock& block) noexcept {
  return {block.key.lo, block.depth == 0 ? policy::kNoKey : block.parent_lo, block.depth};
}

// A capacity for so many blocks that need not be changed again soon.
std::size_t Roomy(std::size_t blocks) noexcept { return blocks + blocks / 8 + 16; }

}  // namespace

DiskIndex::DiskIndex(policy::PolicyKind kind, std::uint32_t first_capacity)
    : kind_(kind), policy_(policy::MakePolicy(kind, first_capacity)), entries_(first_capacity) {
  free_.reserve(first_capacity);
  for (policy::Slot slot = first_capacity; slot > 0; --slot) free_.push_back(slot - 1);
}

const DiskBlock* DiskIndex::Find(const BlockKey& key) const {
  const auto found = slots_.find(key.lo);
  if (found == slots_.end() || entries_[found->second].block.key != key) return nullptr;
  return &entries_[found->second].block;
}

void DiskIndex::Insert(std::span<const DiskBlock> blocks) {
  for (std::size_t first = 0; first < blocks.size();) {
    std::size_t last = first + 1;
    while (last < blocks.size() && blocks[last].depth > 0 && blocks[last].parent_lo == blocks[last - 1].key.lo) ++last;
    InsertRun(blocks.subspan(first, last - first));
    first = last;
  }
}

void DiskIndex::InsertRun(std::span<const DiskBlock> run) {
  if (policy_->order() == policy::Order::kFirstToLast) {
    for (const DiskBlock& block : run) InsertOne(block);
  } else {
    for (auto block = run.rbegin(); block != run.rend(); ++block) InsertOne(*block);
  }
  if (!policy_->counts_uses() && run.front().depth > 0) UseParents(run.front().parent_lo);
}

void DiskIndex::UseParents(std::uint64_t parent_lo) {
  std::uint32_t deeper = ~std::uint32_t{0};
  for (auto found = slots_.find(parent_lo); found != slots_.end(); found = slots_.find(parent_lo)) {
    Entry& entry = entries_[found->second];
    if (entry.block.depth >= deeper) break;  // keys that lead in a circle are damaged ones
    policy_->OnHit(found->second);
    entry.used = ++uses_;
    if (entry.block.depth == 0) break;
    deeper = entry.block.depth;
    parent_lo = entry.block.parent_lo;
  }
}

void DiskIndex::InsertOne(const DiskBlock& block) {
  const auto found = slots_.find(block.key.lo);
  if (found != slots_.end() && entries_[found->second].block.key == block.key) {
    // The same content at another place.
    DiskBlock& known = entries_[found->second].block;
    Segment& segment = segments_[block.segment];
    segments_[known.segment].live -= RecordBytes(known.block_bytes);
    bytes_ -= RecordBytes(known.block_bytes);
    Place(found->second, block, segment);
    return;
  }
  // Half of the key is the same, which happens to hardly any two blocks: the later one stays.
  if (found != slots_.end()) Drop(found->second);
  if (free_.empty() && entries_.size() < policy::kMaxCapacity / 2) Rebuild(evicts_ ? Roomy(entries_.size()) : entries_.size() * 2);
  if (free_.empty()) static_cast<void>(Evict());
  const policy::Slot slot = free_.back();
  Segment& segment = segments_[block.segment];
  policy_->OnInsert(slot, ForPolicy(block));
  try {
    slots_.emplace(block.key.lo, slot);
  } catch (const std::bad_alloc&) {
    policy_->OnErase(slot);
    throw;
  }
  free_.pop_back();
  Place(slot, block, segment);
  entries_[slot].used = ++uses_;
  Changed(block.key, true);
}

void DiskIndex::Place(policy::Slot slot, const DiskBlock& block, Segment& segment) noexcept {
  entries_[slot].block = block;
  segment.live += RecordBytes(block.block_bytes);
  bytes_ += RecordBytes(block.block_bytes);
}

void DiskIndex::Drop(policy::Slot slot) {
  DiskBlock& block = entries_[slot].block;
  segments_[block.segment].live -= RecordBytes(block.block_bytes);
  bytes_ -= RecordBytes(block.block_bytes);
  slots_.erase(block.key.lo);
  Changed(block.key, false);
  block = {};
  policy_->OnErase(slot);
  free_.push_back(slot);
}

void DiskIndex::Changed(const BlockKey& key, bool here) noexcept {
  if (all_changed_) return;
  try {
    if (changes_.size() < kMaxChanges) {
      changes_.push_back({key, here});
      return;
    }
  } catch (const std::bad_alloc&) {
    all_changed_ = true;  // as if there were too many
  }
  all_changed_ = true;
  changes_ = {};
}

DiskChanges DiskIndex::TakeChanges(bool all) {
  DiskChanges out;
  out.all = all || all_changed_;
  if (out.all) {
    out.keys.reserve(blocks());
    for (const auto& [hash, slot] : slots_) out.keys.push_back({entries_[slot].block.key, true});
    changes_.clear();
    all_changed_ = false;
  } else {
    out.keys = std::exchange(changes_, {});
  }
  return out;
}

void DiskIndex::Erase(const BlockKey& key) {
  if (Find(key) != nullptr) Drop(slots_.at(key.lo));
}

void DiskIndex::Erase(const DiskBlock& block) {
  const DiskBlock* known = Find(block.key);
  if (known != nullptr && known->segment == block.segment && known->offset == block.offset) Drop(slots_.at(block.key.lo));
}

void DiskIndex::Use(std::span<const BlockKey> path) {
  std::vector<policy::Block> asked;
  std::vector<policy::Slot> here;
  for (std::size_t i = 0; i < path.size(); ++i) {
    asked.push_back({path[i].lo, i == 0 ? policy::kNoKey : path[i - 1].lo, static_cast<std::uint32_t>(i)});
    if (Find(path[i]) != nullptr) here.push_back(slots_.at(path[i].lo));
  }
  policy_->OnRequest(asked);
  if (policy_->order() == policy::Order::kLastToFirst) std::reverse(here.begin(), here.end());
  for (const policy::Slot slot : here) {
    policy_->OnHit(slot);
    entries_[slot].used = ++uses_;
  }
}

std::optional<DiskBlock> DiskIndex::Evict() {
  evicts_ = true;
  if (Roomy(blocks()) < entries_.size() / 4 * 3) Rebuild(Roomy(blocks()));
  const policy::Slot victim = policy_->ChooseVictim();
  if (victim == policy::kNoSlot) return std::nullopt;
  const DiskBlock out = entries_[victim].block;
  Drop(victim);
  return out;
}

// What the policy has learned is lost, which happens a few times while a cache fills for the first
// time, and when blocks get larger or smaller.
void DiskIndex::Rebuild(std::size_t capacity) {
  std::vector<Entry> known;
  for (const Entry& entry : entries_)
    if (entry.block.block_bytes != 0) known.push_back(entry);
  std::sort(known.begin(), known.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
  // All of it beside what is in use, so that a lack of memory changes nothing.
  std::unique_ptr<policy::EvictionPolicy> policy = policy::MakePolicy(kind_, static_cast<std::uint32_t>(capacity));
  std::unordered_map<std::uint64_t, policy::Slot, SecretHash> slots;
  std::vector<policy::Slot> free;
  free.reserve(capacity);
  for (std::size_t slot = capacity; slot > known.size(); --slot) free.push_back(static_cast<policy::Slot>(slot - 1));
  for (policy::Slot slot = 0; slot < known.size(); ++slot) {
    slots.emplace(known[slot].block.key.lo, slot);
    policy->OnInsert(slot, ForPolicy(known[slot].block));
  }
  known.resize(capacity);
  policy_ = std::move(policy);
  slots_ = std::move(slots);
  free_ = std::move(free);
  entries_ = std::move(known);
}

std::uint64_t DiskIndex::file_bytes() const noexcept {
  std::uint64_t sum = 0;
  for (const auto& [number, segment] : segments_) sum += segment.size;
  return sum;
}

std::optional<std::uint64_t> DiskIndex::EmptiestSegment() const {
  std::optional<std::uint64_t> out;
  std::uint64_t most = kDiskPage;
  for (const auto& [number, segment] : segments_) {
    const std::uint64_t frees = segment.size - std::min(segment.size, segment.live);
    if (frees <= most) continue;
    out = number;
    most = frees;
  }
  return out;
}

std::vector<DiskBlock> DiskIndex::BlocksOf(std::uint64_t segment) const {
  std::vector<DiskBlock> out;
  for (const Entry& entry : entries_)
    if (entry.block.block_bytes != 0 && entry.block.segment == segment) out.push_back(entry.block);
  std::sort(out.begin(), out.end(), [](const DiskBlock& a, const DiskBlock& b) { return a.offset < b.offset; });
  return out;
}

}  // namespace kvm::mesh
