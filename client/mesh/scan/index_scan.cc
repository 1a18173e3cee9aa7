#include "client/mesh/scan/index_scan.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

namespace kvm::mesh {
namespace {

constexpr std::size_t kManyBlocks = 8192;  // that are looked through before the oldest are kept

std::uint32_t PositionOf(const IndexEntry& entry) noexcept {
  const std::uint64_t mixed = (entry.parent_lo + entry.depth) * std::uint64_t{0x9e3779b97f4a7c15};
  return static_cast<std::uint32_t>(mixed >> 32);
}

}  // namespace

void IndexScan::Forget() noexcept {
  versions_.clear();
  seen_.clear();
  rows_.clear();
  replicas_.clear();
}

void IndexScan::KeepOldest(std::vector<CachedBlock>& blocks, std::size_t most) {
  const auto older = [](const CachedBlock& a, const CachedBlock& b) {
    return std::tie(a.published_s, a.depth) < std::tie(b.published_s, b.depth);
  };
  std::sort(blocks.begin(), blocks.end(), older);
  if (blocks.size() > most) blocks.resize(most);
}

IndexScan::Seen IndexScan::See(const IndexEntry& entry) const {
  Seen out;
  if (entry.region >= rows_.size() || entry.region_epoch == 0) return out;
  const RowUse& row = rows_[entry.region];
  out.key = entry.key;
  out.row = entry.region;
  if (row.served_epoch == entry.region_epoch) out.uses = row.cached ? kServed | kCached : kServed;
  if (row.held_epoch != entry.region_epoch) return out;
  out.position = PositionOf(entry);
  out.model = row.model;
  out.medium = row.medium;
  return out;
}

void IndexScan::OfferCached(const IndexEntry& entry, const BlockShape& shape, const ScanPlan& plan, ScanResult& out) {
  if (!plan.stored || replicas_[entry.key].named || plan.stored(entry.key)) return;
  out.unstored.push_back({entry.key, entry.parent_lo, entry.depth, entry.published_s, shape});
  out.more_unstored = out.more_unstored || out.unstored.size() > plan.most;
  if (out.unstored.size() >= 2 * plan.most + kManyBlocks) KeepOldest(out.unstored, plan.most);
}

void IndexScan::Leave(const Seen& seen, ScanResult& out) {
  if (seen.medium != 0) out.held.changes.push_back({{seen.key, 0, 0, seen.model, seen.medium}, false});
  if ((seen.uses & kServed) == 0) return;
  Replicas& replicas = replicas_[seen.key];
  --replicas.served;
  if ((seen.uses & kCached) != 0) --replicas.cached;
  touched_.push_back(seen.key);
}

void IndexScan::Enter(const Seen& seen, const IndexEntry& entry, const ScanPlan& plan, ScanResult& out) {
  if (seen.medium != 0) out.held.changes.push_back({{seen.key, entry.parent_lo, entry.depth, seen.model, seen.medium}, true});
  if ((seen.uses & kServed) == 0) return;
  Replicas& replicas = replicas_[seen.key];
  ++replicas.served;
  touched_.push_back(seen.key);
  if ((seen.uses & kCached) == 0) return;
  ++replicas.cached;
  if (!plan.all_unstored) OfferCached(entry, *rows_[seen.row].cached, plan, out);
}

void IndexScan::ReadSlot(const IndexReader& index, const SlotVersions& versions, std::uint64_t slot, std::uint32_t version,
                         const ScanPlan& plan, ScanResult& out) {
  IndexEntry entry;
  const bool found = index.ReadSlot(slot, entry);
  // Not what was read, or not all of it.
  if ((version & 1) != 0 || versions.At(slot) != version) {
    complete_ = false;
    return;
  }
  const Seen now = found ? See(entry) : Seen();
  versions_[slot] = version;
  const Seen before = std::exchange(seen_[slot], now);
  if (before == now) return;
  Leave(before, out);
  Enter(now, entry, plan, out);
}

void IndexScan::LookAtCached(const IndexReader& index, const ScanPlan& plan, ScanResult& out) {
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < seen_.size(); ++slot) {
    const Seen& seen = seen_[slot];
    // Of a slot that was being written the row may mean something else by now.
    if ((seen.uses & kCached) == 0 || !rows_[seen.row].cached || !index.ReadSlot(slot, entry) || entry.key != seen.key) continue;
    OfferCached(entry, *rows_[seen.row].cached, plan, out);
  }
}

void IndexScan::TellKeys(ScanResult& out) {
  for (const BlockKey& key : std::exchange(touched_, {})) {
    const auto found = replicas_.find(key);
    if (found == replicas_.end()) continue;  // it was touched more than once
    Replicas& replicas = found->second;
    const bool here = replicas.served > 0;
    if (replicas.cached == 0) replicas.named = false;
    if (here != std::exchange(replicas.told, here)) out.keys.push_back({key, here});
    if (!here) replicas_.erase(found);
  }
  std::partition(out.keys.begin(), out.keys.end(), [](const KeyChange& each) { return !each.here; });
}

void IndexScan::Read(const IndexReader& index, const SlotVersions& versions, std::vector<RowUse> rows, const ScanPlan& plan,
                     ScanResult& out) {
  out.read = true;
  out.all = out.held.all = versions_.empty();
  complete_ = true;
  touched_.clear();
  if (out.all) {
    seen_.assign(index.slots(), {});
    versions_.assign(index.slots(), 0);  // of a slot that was never written
  }
  rows_.resize(rows.size());
  std::vector<bool> changed(rows.size());
  bool any_changed = false;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    changed[row] = rows[row] != rows_[row];
    any_changed = any_changed || changed[row];
  }
  rows_ = std::move(rows);
  for (std::uint64_t slot = 0; slot < seen_.size(); ++slot) {
    const std::uint32_t version = versions.At(slot);
    if (version == versions_[slot] && !(any_changed && seen_[slot].row != kNoRow && changed[seen_[slot].row])) continue;
    ReadSlot(index, versions, slot, version, plan, out);
  }
  if (plan.all_unstored && plan.stored) LookAtCached(index, plan, out);
  KeepOldest(out.unstored, plan.most);
  for (const CachedBlock& block : out.unstored) replicas_[block.key].named = true;
  TellKeys(out);
}

}  // namespace kvm::mesh
