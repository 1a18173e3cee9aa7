#include "daemon/registry/region_table.h"

#include "daemon/registry/quota_error.h"
#include "daemon/system/work_meter.h"

namespace kvm::daemon {

Status RegionTable::CheckAgainstOthers(const Region& region, const Owner& owner) const {
  Spend(regions_.size());
  for (const auto& other : regions_) {
    if (!other || !other->serving()) continue;
    if (other->info.owner_uid == owner.uid && other->descriptor.name() == region.descriptor.name()) {
      return MakeError(Errc::kAlreadyExists, "region: the name " + region.descriptor.name() + " is in use by process " +
                                                 std::to_string(other->info.owner_pid) +
                                                 (other->orphan ? ", which is not connected but still runs" : ""));
    }
    // Slabs of the host cache do not count: the cache drops them when a worker registers blocks of
    // another size. Nor do other users' regions, or the first user who registers a model would
    // decide for all; an importer refuses blocks of another size than its own.
    if (other->filler == nullptr && other->info.owner_uid == owner.uid && other->info.model == region.info.model &&
        SameShard(*other, region) && other->info.block_bytes != region.info.block_bytes) {
      return MakeError(Errc::kBadGeometry, "region: blocks of " + std::to_string(region.info.block_bytes) + " bytes, but " +
                                               other->descriptor.name() + " of the same model and shard has blocks of " +
                                               std::to_string(other->info.block_bytes));
    }
  }
  // A file belongs to one region only. Otherwise the end of one region would end the other's blocks
  // too, and no owner would control all writes to the bytes.
  for (std::size_t i = 0; i < region.files.size(); ++i) {
    const auto found = row_of_memory_.find(region.files[i]);
    if (found == row_of_memory_.end()) continue;
    return MakeError(Errc::kAlreadyExists, "region: " + (i == 0 ? std::string("generation table") : "segment " + std::to_string(i - 1)) +
                                               ": region " + regions_[found->second]->descriptor.name() + " has this memory");
  }
  return {};
}

Result<Region*> RegionTable::Add(const Owner& owner, std::unique_ptr<Region> added) {
  Region& region = *added;
  if (next_region_epoch_ == 0) {
    return MakeError(Errc::kResourceExhausted,
                     "this domain has registered 2^32 regions since kvmd started; restart kvmd, workers go on meanwhile");
  }
  std::uint32_t row = next_row_;
  for (std::uint32_t tried = 0; regions_[row]; ++tried) {
    if (tried == regions_.size()) return Exhausted("region table is full", regions_.size(), "--max-regions");
    row = row + 1 == regions_.size() ? 0 : row + 1;
  }
  if (Status fits = CheckAgainstOthers(region, owner); !fits) return fits.error();

  region.row = row;
  region.owner = owner.client;
  region.info.region_epoch = next_region_epoch_++;
  region.info.client_id = owner.client;
  region.info.owner_pid = owner.pid;
  region.info.owner_uid = owner.uid;
  region.info.registered_ms = RealtimeMs();
  for (const FileId& file : region.files) row_of_memory_.emplace(file, row);
  regions_[row] = std::move(added);
  next_row_ = row + 1 == regions_.size() ? 0 : row + 1;
  Enter(region, RegionPhase::kLive);
  return &region;
}

void RegionTable::Free(Region& region) noexcept {
  region.info = layout::RegionInfo{};
  Enter(region, RegionPhase::kFree);
  regions_[region.row].reset();
}

void RegionTable::Enter(Region& region, RegionPhase next) noexcept {
  const bool served = region.serving();
  live_ -= region.live();
  orphans_ -= region.phase() == RegionPhase::kOrphan;
  region.Enter(next);
  live_ += region.live();
  orphans_ += region.phase() == RegionPhase::kOrphan;
  if (served && !region.serving()) {
    for (const FileId& file : region.files) row_of_memory_.erase(file);
  }
  Write(region);
}

void RegionTable::Write(Region& region) noexcept {
  region.info.live_entries = region.entries;
  segment_.regions()[region.row].Write(region.info);
  segment_.header().live_regions.store(live_, std::memory_order_relaxed);
  kvm::daemon::Add(segment_.header().region_changes);
}

void RegionTable::WriteChanged() {
  for (const auto& region : regions_) {
    if (region && region->info.live_entries != region->entries) Write(*region);
  }
}

Region* RegionTable::Find(std::uint32_t row, std::uint32_t region_epoch) noexcept {
  return row < regions_.size() && regions_[row] && regions_[row]->info.region_epoch == region_epoch ? regions_[row].get() : nullptr;
}

Region* RegionTable::FindServing(std::uint32_t owner_uid, const std::string& name) noexcept {
  Spend(regions_.size());
  for (const auto& region : regions_) {
    if (region && region->serving() && region->info.owner_uid == owner_uid && region->descriptor.name() == name) return region.get();
  }
  return nullptr;
}

std::vector<Region*> RegionTable::Of(ClientId owner) noexcept {
  Spend(regions_.size());
  std::vector<Region*> out;
  for (const auto& region : regions_) {
    if (region && region->owner == owner) out.push_back(region.get());
  }
  return out;
}

std::vector<Region*> RegionTable::ServingOfModel(std::uint32_t model) noexcept {
  Spend(regions_.size());
  std::vector<Region*> out;
  for (const auto& region : regions_) {
    if (region && region->serving() && region->info.model == model) out.push_back(region.get());
  }
  return out;
}

Region* RegionTable::FindDamaged(std::uint32_t most) noexcept {
  for (std::size_t rows = regions_.size(); rows > 0 && most > 0; --rows) {
    Region* region = regions_[look_hand_].get();
    look_hand_ = look_hand_ + 1 == regions_.size() ? 0 : look_hand_ + 1;
    if (region == nullptr || !region->serving()) continue;
    --most;
    if (!region->whole()) return region;
  }
  return nullptr;
}

}  // namespace kvm::daemon
