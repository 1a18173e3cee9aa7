#include "daemon/registry/orphan_regions.h"

#include <algorithm>

#include "proto/wire/region_descriptor.h"

namespace kvm::daemon {

std::vector<Region*> OrphanRegions::All() noexcept {
  std::vector<Region*> out;
  for (const auto& region : regions_.rows()) {
    if (region && region->orphan) out.push_back(region.get());
  }
  std::sort(out.begin(), out.end(), [](const Region* a, const Region* b) { return a->orphan->since < b->orphan->since; });
  return out;
}

std::vector<Region*> OrphanRegions::InTheWayOf(const Region& region, std::uint32_t owner_uid) noexcept {
  std::vector<Region*> out;
  for (const auto& other : regions_.rows()) {
    if (!other || !other->orphan || (!other->orphan->process->Ended() && !other->generations.all_ended())) continue;
    if (other->info.owner_uid != owner_uid) continue;
    const bool same_name = other->descriptor.name() == region.descriptor.name();
    const bool same_blocks = other->info.model == region.info.model && SameShard(*other, region);
    if (same_name || (same_blocks && other->info.block_bytes != region.info.block_bytes)) out.push_back(other.get());
  }
  return out;
}

std::vector<Region*> OrphanRegions::InTheWayOf(const kvmwire::RegionDescriptor& announced, std::uint32_t owner_uid) {
  std::vector<std::uint64_t> segment_bytes;
  for (const kvmwire::Segment& segment : announced.segments()) segment_bytes.push_back(segment.size_bytes());
  const Geometry geometry = GeometryOf(announced);
  const bool sound = geometry.Validate(segment_bytes).has_value();
  std::vector<Region*> out;
  for (Region* orphan : All()) {
    if (orphan->info.owner_uid != owner_uid || !orphan->orphan->process->Ended()) continue;
    const kvmwire::RegionDescriptor& other = orphan->descriptor;
    const bool same_blocks = sound && other.fingerprint() == announced.fingerprint() &&
                             std::equal(other.shard().begin(), other.shard().end(), announced.shard().begin(), announced.shard().end());
    if (other.name() == announced.name() || (same_blocks && orphan->info.block_bytes != geometry.BlockBytes())) out.push_back(orphan);
  }
  return out;
}

Status OrphanRegions::TakeOver(Region& region, const Owner& owner) {
  if (Status allowed = accounts_.Check(owner.client, region.info.block_count, region.descriptors()); !allowed) return allowed;
  accounts_.Move(region, owner.client);
  region.owner = owner.client;
  region.announced_to.erase(owner.client);
  region.info.client_id = owner.client;
  region.info.owner_pid = owner.pid;
  regions_.Enter(region, RegionPhase::kLive);
  return {};
}

std::uint64_t OrphanRegions::bytes() const noexcept {
  std::uint64_t bytes = 0;
  for (const auto& region : regions_.rows()) {
    if (region && region->orphan) bytes += region->segment_bytes();
  }
  return bytes;
}

}  // namespace kvm::daemon
