// Blocks that leases hold: where kvmd itself keeps one, and what may not be given up meanwhile.
#include <algorithm>

#include "daemon/registry/domain.h"

namespace kvm::daemon {
namespace {

// What nobody but kvmd can rewrite or take away: a slab of the host cache, and memory that a process has left for good.
bool RetainedByKvmd(const Region& region) {
  return region.filler != nullptr || (region.orphan && region.outlives_owner() && region.orphan->process->Ended());
}

}  // namespace

Result<Domain::RetainedBlock> Domain::FindRetained(const kvmwire::LeaseSource& source) {
  Region* region = FindRegion(source.region(), source.region_epoch());
  if (region == nullptr || !region->serving()) return MakeError(Errc::kStale, "lease: the region of the block has gone");
  if (source.block() >= region->info.block_count) return MakeError(Errc::kInvalidArgument, "lease: block out of range");
  const std::uint32_t slot = region->slots.Get(source.block());
  if (slot == SlotMap::kNone) return MakeError(Errc::kStale, "lease: the block is not published any more");
  const IndexEntry entry = index_.At(slot);
  if (entry.generation != source.generation() || IsStale(entry)) return MakeError(Errc::kStale, "lease: the block has been rewritten");
  if (RetainedByKvmd(*region)) return RetainedBlock{region, source.block()};
  std::uint64_t slots[layout::kMaxReplicas];
  const std::size_t replicas = index_.Replicas(entry.key, slots);
  RetainedBlock kept;
  for (std::size_t i = 0; i < replicas; ++i) {
    const IndexEntry other = index_.At(slots[i]);
    Region& its_region = *regions_[other.region];
    if (IsStale(other) || !RetainedByKvmd(its_region)) continue;
    // Rather than in a dead worker's memory, which somebody may want whole.
    if (kept.region == nullptr || its_region.filler != nullptr) kept = {&its_region, other.block};
  }
  if (kept.region != nullptr) return kept;
  return MakeError(Errc::kUnsupported, "lease: the block is in memory of process " + std::to_string(region->info.owner_pid) + " only (" +
                                           region->descriptor.name() + "), which may overwrite it at any time");
}

bool Domain::Pin(Region& region, std::uint32_t block) {
  if (region.filler != nullptr) return region.filler->Pin(block);
  ++region.pinned[block];
  return true;
}

void Domain::Unpin(Region& region, std::uint32_t block) noexcept {
  if (region.filler != nullptr) return region.filler->Unpin(block);
  const auto found = region.pinned.find(block);
  if (found != region.pinned.end() && --found->second == 0) region.pinned.erase(found);
}

bool Domain::IsPinned(const IndexEntry& entry) const noexcept {
  const Region& region = *regions_[entry.region];
  return region.filler != nullptr ? region.filler->Pinned(entry.block) : region.pinned.contains(entry.block);
}

std::uint32_t Domain::leased_orphans() const noexcept {
  return static_cast<std::uint32_t>(std::count_if(regions_.begin(), regions_.end(),
                                                  [](const auto& region) { return region && region->orphan && !region->pinned.empty(); }));
}

std::uint64_t Domain::fds() const noexcept {
  std::uint64_t fds = 0;
  for (const auto& [client, account] : accounts_) fds += account.fds;
  return fds;
}

}  // namespace kvm::daemon
