#include "daemon/registry/retained_blocks.h"

#include <algorithm>

namespace kvm::daemon {
namespace {

// Whether only kvmd can rewrite or free the region's blocks: those of a slab of the host cache, and
// those of a dead worker's region.
bool RetainedByKvmd(const Region& region) {
  return region.filler != nullptr || (region.orphan && region.outlives_owner() && region.orphan->process->Ended());
}

}  // namespace

Result<RetainedBlock> RetainedBlocks::Find(const kvmwire::LeaseSource& source) {
  Region* region = regions_.Find(source.region(), source.region_epoch());
  if (region == nullptr || !region->serving()) return MakeError(Errc::kStale, "lease: the region of the block has gone");
  if (source.block() >= region->info.block_count) return MakeError(Errc::kInvalidArgument, "lease: block out of range");
  const IndexEntry entry = entries_.Of(*region, source.block());
  if (entry.region_epoch == 0) return MakeError(Errc::kStale, "lease: the block is not published any more");
  if (entry.generation != source.generation() || entries_.IsStale(entry))
    return MakeError(Errc::kStale, "lease: the block has been rewritten");
  if (RetainedByKvmd(*region)) return RetainedBlock{region, source.block()};
  std::uint64_t slots[layout::kMaxReplicas];
  const std::size_t replicas = entries_.index().Replicas(entry.key, slots);
  RetainedBlock kept;
  for (std::size_t i = 0; i < replicas; ++i) {
    const IndexEntry other = entries_.index().At(slots[i]);
    Region& its_region = regions_.At(other.region);
    if (entries_.IsStale(other) || !RetainedByKvmd(its_region)) continue;
    // A replica in the host cache is preferred to one in a dead worker's region, since a restarted
    // worker may adopt that region.
    if (kept.region == nullptr || its_region.filler != nullptr) kept = {&its_region, other.block};
  }
  if (kept.region != nullptr) return kept;
  return MakeError(Errc::kUnsupported, "lease: the block is in memory of process " + std::to_string(region->info.owner_pid) + " only (" +
                                           region->descriptor.name() + "), which may overwrite it at any time");
}

std::uint32_t RetainedBlocks::leased_orphans() const noexcept {
  return static_cast<std::uint32_t>(std::count_if(regions_.rows().begin(), regions_.rows().end(),
                                                  [](const auto& region) { return region && region->orphan && !region->pinned.empty(); }));
}

}  // namespace kvm::daemon
