#include "daemon/registry/domain.h"

#include <algorithm>

#include "daemon/system/config_domains.h"

namespace kvm::daemon {
namespace {

std::optional<std::uint32_t> UserOf(const Region& region) noexcept {
  return region.account->own ? std::nullopt : std::optional(region.info.owner_uid);
}

RegistrySegment::Sizes SegmentSizes(const Config& settings) { return {settings.max_entries, settings.max_regions, settings.max_models}; }

}  // namespace

Result<std::unique_ptr<Domain>> Domain::Create(const std::string& name, const Config& config, DescriptorQuota& descriptors) {
  Result<RegistrySegment> segment = RegistrySegment::Create(name, SegmentSizes(SettingsOf(config, name)));
  if (!segment) return segment.error();
  return Create(name, config, descriptors, std::move(*segment));
}

Result<RegistrySegment> Domain::BeginSegment(const std::string& name, const Config& config) {
  return RegistrySegment::Begin(name, SegmentSizes(SettingsOf(config, name)));
}

std::unique_ptr<Domain> Domain::Create(const std::string& name, const Config& config, DescriptorQuota& descriptors,
                                       RegistrySegment segment) {
  return std::unique_ptr<Domain>(new Domain(name, SettingsOf(config, name), descriptors, std::move(segment)));
}

Domain::Domain(std::string name, Config config, DescriptorQuota& descriptors, RegistrySegment segment)
    : name_(std::move(name)),
      config_(std::move(config)),
      segment_(std::move(segment)),
      models_(segment_, config_.max_models, ModelsPerUser(config_)),
      marks_(config_, segment_),
      accounts_(config_, descriptors),
      regions_(segment_, config_.max_regions),
      entries_(config_, segment_, regions_, accounts_),
      orphans_(regions_, accounts_),
      retained_(regions_, entries_) {}

Result<std::unique_ptr<Region>> Domain::PrepareRegion(ClientId owner, kvmwire::RegionDescriptor descriptor, std::vector<PeerFd> fds) const {
  const Result<std::uint32_t> model = models_.Find(descriptor.fingerprint());
  if (!model) return model.error();
  if (Status allowed = accounts_.Check(owner, descriptor.block_count(), fds.size()); !allowed) return allowed.error();
  Result<std::unique_ptr<Region>> checked = CheckRegion(std::move(descriptor), std::move(fds), models_.spec(*model));
  if (!checked) return checked.error();
  // Granted memory takes two descriptors each.
  if (Status allowed = accounts_.Check(owner, (*checked)->info.block_count, (*checked)->descriptors()); !allowed) return allowed.error();
  if (Status allowed = accounts_.CheckDescriptors((*checked)->descriptors()); !allowed) return allowed.error();
  (*checked)->info.model = *model;
  return checked;
}

Result<Region*> Domain::AddRegion(const Owner& owner, std::unique_ptr<Region> added) {
  if (Status allowed = accounts_.CheckUser(owner.client, owner.uid, added->info.block_count, added->descriptors()); !allowed)
    return allowed.error();
  Result<Region*> region = regions_.Add(owner, std::move(added));
  if (!region) return region;
  accounts_.Join(**region, owner.client);
  models_.AddRegion((*region)->info.model, UserOf(**region));
  return region;
}

bool Domain::nearly_full() const noexcept {
  const std::size_t rows = regions_.rows().size();
  return regions_.live() + regions_.orphans() + leaving_.size() + rows / 8 + 1 >= rows;
}

bool Domain::idle() const noexcept {
  return std::all_of(regions_.rows().begin(), regions_.rows().end(), [](const auto& region) { return !region || region->account->own; });
}

bool Domain::empty() const noexcept {
  return std::none_of(regions_.rows().begin(), regions_.rows().end(), [](const auto& region) { return bool{region}; });
}

void Domain::StartLeaving(Region& region, bool asks_importers) noexcept {
  region.asks_importers = asks_importers;
  regions_.Enter(region, RegionPhase::kLeaving);
  leaving_.insert(region.row);
}

void Domain::StopWaitingFor(ClientId importer) noexcept {
  for (const auto& region : regions_.rows()) {
    if (!region) continue;
    region->waiting_for.erase(importer);
    region->announced_to.erase(importer);
  }
}

kvmwire::PublishAck Domain::Publish(ClientId client, const kvmwire::Publish& publish) {
  Publishing progress;
  while (!entries_.Publish(client, publish, progress, WorkBudget())) continue;
  return std::move(progress.ack);
}

bool Domain::Reap(std::uint32_t blocks) {
  const WorkBudget budget;
  bool more = false;
  for (auto row = leaving_.begin(); row != leaving_.end() && !more;) {
    Region& region = regions_.At(*row);
    more = !entries_.Reap(region, blocks, budget) || budget.used_up();
    if (more || !region.waiting_for.empty() || !region.to_tell.empty()) {
      ++row;
      continue;
    }
    Spend(region.descriptors() * kSystemCallUnits);
    const std::uint32_t model = region.info.model;
    const std::optional<std::uint32_t> user = UserOf(region);
    accounts_.Leave(region);
    if (freed_) freed_(region);
    regions_.Free(region);
    models_.RemoveRegion(model, user);
    row = leaving_.erase(row);
  }
  entries_.WriteCount();
  return more;
}

}  // namespace kvm::daemon
