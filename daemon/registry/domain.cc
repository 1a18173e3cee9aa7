#include "daemon/registry/domain.h"

#include <algorithm>

#include "proto/wire/region_descriptor.h"

namespace kvm::daemon {
namespace {

Error Exhausted(const std::string& what, std::uint64_t limit, const char* option) {
  return MakeError(Errc::kResourceExhausted, what + ": the limit is " + std::to_string(limit) + " (" + option + ")");
}

bool SameShard(const Region& a, const Region& b) {
  return a.info.tp_rank == b.info.tp_rank && a.info.pp_rank == b.info.pp_rank && a.info.kv_group == b.info.kv_group;
}

}  // namespace

Result<std::unique_ptr<Domain>> Domain::Create(const std::string& name, const Config& config, DescriptorQuota& descriptors) {
  Result<RegistrySegment> segment = RegistrySegment::Create(name, {config.max_entries, config.max_regions, config.max_models});
  if (!segment) return segment.error();
  return std::unique_ptr<Domain>(new Domain(name, config, descriptors, std::move(*segment)));
}

Domain::Domain(std::string name, const Config& config, DescriptorQuota& descriptors, RegistrySegment segment)
    : name_(std::move(name)),
      config_(config),
      descriptors_(descriptors),
      segment_(std::move(segment)),
      index_(segment_.slots(), segment_.tags(), segment_.header().index_slots, config.max_entries, &segment_.header().index_moves,
             [this](const IndexEntry& entry, std::uint64_t slot) { regions_[entry.region]->slots.Set(entry.block, slot); }),
      models_(segment_, config.max_models),
      regions_(config.max_regions) {}

Domain::~Domain() { descriptors_.Remove(fds()); }

Account Domain::AccountOf(ClientId client) const {
  const auto found = accounts_.find(client);
  return found == accounts_.end() ? Account{} : found->second;
}

Status Domain::CheckQuotas(ClientId client, std::uint64_t blocks, std::size_t fds) const {
  if (client == kNoClient) return {};  // kvmd's own
  const Account account = AccountOf(client);
  if (account.regions >= config_.max_regions_per_client)
    return Exhausted("too many regions of one client", config_.max_regions_per_client, "--max-regions-per-client");
  if (account.fds + fds > config_.max_fds_per_client)
    return Exhausted("too many descriptors of one client", config_.max_fds_per_client, "--max-fds-per-client");
  if (account.blocks + blocks > config_.max_blocks_per_client)
    return Exhausted("too many blocks of one client", config_.max_blocks_per_client, "--max-blocks-per-client");
  return {};
}

Status Domain::CheckAgainstOthers(const Region& region, const Owner& owner) const {
  for (const auto& other : regions_) {
    if (!other || !other->serving()) continue;
    if (other->info.owner_uid == owner.uid && other->descriptor.name() == region.descriptor.name()) {
      return MakeError(Errc::kAlreadyExists, "region: the name " + region.descriptor.name() + " is in use by process " +
                                                 std::to_string(other->info.owner_pid) +
                                                 (other->orphan ? ", which is not connected but still runs" : ""));
    }
    // The host cache drops its own when a worker comes with another size.
    if (other->filler == nullptr && other->info.model == region.info.model && SameShard(*other, region) &&
        other->info.block_bytes != region.info.block_bytes) {
      return MakeError(Errc::kBadGeometry, "region: blocks of " + std::to_string(region.info.block_bytes) + " bytes, but " +
                                               other->descriptor.name() + " of the same model and shard has blocks of " +
                                               std::to_string(other->info.block_bytes));
    }
  }
  // One region a file: else the end of one would be taken for the other's, and its owner could not answer for the bytes.
  for (std::size_t i = 0; i < region.files.size(); ++i) {
    const auto found = row_of_memory_.find(region.files[i]);
    if (found == row_of_memory_.end()) continue;
    return MakeError(Errc::kAlreadyExists, "region: " + (i == 0 ? std::string("generation table") : "segment " + std::to_string(i - 1)) +
                                               ": region " + regions_[found->second]->descriptor.name() + " has this memory");
  }
  return {};
}

Result<std::unique_ptr<Region>> Domain::PrepareRegion(ClientId owner, kvmwire::RegionDescriptor descriptor,
                                                      std::vector<UniqueFd> fds) const {
  const Result<std::uint32_t> model = models_.Find(descriptor.fingerprint());
  if (!model) return model.error();
  if (Status allowed = CheckQuotas(owner, descriptor.block_count(), fds.size()); !allowed) return allowed.error();
  Result<std::unique_ptr<Region>> checked = CheckRegion(std::move(descriptor), std::move(fds), models_.spec(*model));
  if (!checked) return checked.error();
  // Granted memory takes two descriptors each.
  if (Status allowed = CheckQuotas(owner, (*checked)->info.block_count, (*checked)->descriptors()); !allowed) return allowed.error();
  if (Status allowed = descriptors_.Check(this->fds(), (*checked)->descriptors()); !allowed) return allowed.error();
  (*checked)->info.model = *model;
  return checked;
}

std::vector<Region*> Domain::OrphansInTheWay(const Region& region, std::uint32_t owner_uid) noexcept {
  std::vector<Region*> out;
  for (const auto& other : regions_) {
    if (!other || !other->orphan || (!other->orphan->process->Ended() && !other->generations.all_ended())) continue;
    const bool same_name = other->info.owner_uid == owner_uid && other->descriptor.name() == region.descriptor.name();
    const bool same_blocks = other->info.model == region.info.model && SameShard(*other, region);
    if (same_name || (same_blocks && other->info.block_bytes != region.info.block_bytes)) out.push_back(other.get());
  }
  return out;
}

std::vector<Region*> Domain::OrphansInTheWay(const kvmwire::RegionDescriptor& announced, std::uint32_t owner_uid) {
  std::vector<std::uint64_t> segment_bytes;
  for (const kvmwire::Segment& segment : announced.segments()) segment_bytes.push_back(segment.size_bytes());
  const Geometry geometry = GeometryOf(announced);
  const bool sound = geometry.Validate(segment_bytes).has_value();
  std::vector<Region*> out;
  for (Region* orphan : Orphans()) {
    if (orphan->info.owner_uid != owner_uid || !orphan->orphan->process->Ended()) continue;
    const kvmwire::RegionDescriptor& other = orphan->descriptor;
    const bool same_blocks = sound && other.fingerprint() == announced.fingerprint() &&
                             std::equal(other.shard().begin(), other.shard().end(), announced.shard().begin(), announced.shard().end());
    if (other.name() == announced.name() || (same_blocks && orphan->info.block_bytes != geometry.BlockBytes())) out.push_back(orphan);
  }
  return out;
}

Result<Region*> Domain::AddRegion(const Owner& owner, std::unique_ptr<Region> added) {
  Region& region = *added;
  std::uint32_t row = next_row_;
  for (std::uint32_t tried = 0; regions_[row]; ++tried) {
    if (tried == regions_.size() || next_region_epoch_ == 0) return Exhausted("region table is full", config_.max_regions, "--max-regions");
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
  region.account = &accounts_[owner.client];
  region.account->regions += 1;
  region.account->blocks += region.info.block_count;
  region.account->fds += region.descriptors();
  descriptors_.Add(region.descriptors());
  models_.AddRegion(region.info.model);
  for (const FileId& file : region.files) row_of_memory_.emplace(file, row);
  regions_[row] = std::move(added);
  next_row_ = row + 1 == regions_.size() ? 0 : row + 1;
  Enter(region, RegionPhase::kLive);
  return &region;
}

void Domain::Enter(Region& region, RegionPhase next) noexcept {
  live_regions_ -= region.live();
  orphans_ -= region.phase() == RegionPhase::kOrphan;
  region.Enter(next);
  live_regions_ += region.live();
  orphans_ += region.phase() == RegionPhase::kOrphan;
  WriteRow(region);
}

void Domain::WriteRow(Region& region) noexcept {
  region.info.live_entries = region.entries;
  segment_.regions()[region.row].Write(region.info);
  segment_.header().live_regions.store(live_regions_, std::memory_order_relaxed);
  Add(segment_.header().region_changes);
}

void Domain::WriteRows() {
  for (const auto& region : regions_) {
    if (region && region->info.live_entries != region->entries) WriteRow(*region);
  }
}

bool Domain::idle() const noexcept {
  return std::all_of(regions_.begin(), regions_.end(), [](const auto& region) { return !region || region->filler != nullptr; });
}

Region* Domain::FindRegion(std::uint32_t row, std::uint32_t region_epoch) noexcept {
  return row < regions_.size() && regions_[row] && regions_[row]->info.region_epoch == region_epoch ? regions_[row].get() : nullptr;
}

Region* Domain::FindServingRegion(std::uint32_t owner_uid, const std::string& name) noexcept {
  for (const auto& region : regions_) {
    if (region && region->serving() && region->info.owner_uid == owner_uid && region->descriptor.name() == name) return region.get();
  }
  return nullptr;
}

std::vector<Region*> Domain::RegionsOf(ClientId owner) noexcept {
  std::vector<Region*> out;
  for (const auto& region : regions_) {
    if (region && region->owner == owner) out.push_back(region.get());
  }
  return out;
}

std::vector<Region*> Domain::ServingRegionsOfModel(std::uint32_t model) noexcept {
  std::vector<Region*> out;
  for (const auto& region : regions_) {
    if (region && region->serving() && region->info.model == model) out.push_back(region.get());
  }
  return out;
}

void Domain::StartLeaving(Region& region, bool asks_importers) noexcept {
  region.asks_importers = asks_importers;
  for (const FileId& file : region.files) row_of_memory_.erase(file);
  Enter(region, RegionPhase::kLeaving);
  leaving_.insert(region.row);
}

Region* Domain::FindDamaged(std::uint32_t most) noexcept {
  for (std::size_t rows = regions_.size(); rows > 0 && most > 0; --rows) {
    Region* region = regions_[look_hand_].get();
    look_hand_ = look_hand_ + 1 == regions_.size() ? 0 : look_hand_ + 1;
    if (region == nullptr || !region->serving()) continue;
    --most;
    if (!region->whole()) return region;
  }
  return nullptr;
}

void Domain::StopWaitingFor(ClientId importer) noexcept {
  for (const auto& region : regions_) {
    if (!region) continue;
    region->waiting_for.erase(importer);
    region->announced_to.erase(importer);
  }
}

bool Domain::Reap(std::uint32_t budget) {
  for (auto row = leaving_.begin(); row != leaving_.end();) {
    Region& region = *regions_[*row];
    for (; region.entries > 0; ++region.reap_from, --budget) {
      if (budget == 0) {
        WriteEntryCount();
        return true;
      }
      const std::uint32_t slot = region.slots.Get(region.reap_from);
      if (slot != SlotMap::kNone) EraseEntry(slot, segment_.counters().reaped);
    }
    if (!region.waiting_for.empty()) {
      ++row;
      continue;
    }
    FreeRegion(*row);
    row = leaving_.erase(row);
  }
  WriteEntryCount();
  return false;
}

void Domain::FreeRegion(std::uint32_t row) noexcept {
  Region& region = *regions_[row];
  const std::uint32_t model = region.info.model;
  LeaveAccount(region);
  region.info = layout::RegionInfo{};
  Enter(region, RegionPhase::kFree);
  regions_[row].reset();
  models_.RemoveRegion(model);
}

}  // namespace kvm::daemon
