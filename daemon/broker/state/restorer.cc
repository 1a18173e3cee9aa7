#include "daemon/broker/state/restorer.h"

#include <unistd.h>

#include <algorithm>
#include <map>

#include "daemon/system/log.h"
#include "proto/base/fault_point.h"

namespace kvm::daemon {
namespace {

constexpr ClientId kNobody = 0;

std::uint64_t RowKey(std::uint32_t row, std::uint32_t region_epoch) { return std::uint64_t{row} << 32 | region_epoch; }

}  // namespace

void Restorer::Restore(PersistedState state) {
  std::map<std::pair<std::uint32_t, std::uint32_t>, ClientId> owners;  // by uid and pid
  // By epoch of the old registry
  std::map<std::uint64_t, Rebuild> rebuilds;
  for (UniqueFd& fd : state.registries) {
    Result<MappedMemory> memory = MappedMemory::Attach(fd.get(), layout::kHeaderBytes);
    Result<RegistryView> view = memory ? RegistryView::Open(std::move(*memory)) : Result<RegistryView>(memory.error());
    if (!view) {
      Log(LogLevel::kWarn, "registry_not_restored", {{"reason", view.error().ToString()}});
      continue;
    }
    const std::uint64_t epoch = view->header().epoch;
    rebuilds[epoch].old = std::move(*view);
  }
  for (PersistedRegion& persisted : state.regions) {
    const kvmwire::StoredRegion& manifest = persisted.manifest;
    ClientId& owner = owners[{manifest.owner_uid(), manifest.owner_pid()}];
    if (owner == kNobody) owner = clients_.NextId();
    const Result<Region*> region = RestoreRegion(persisted, owner);
    if (!region) {
      Log(LogLevel::kWarn, "region_not_restored", {{"region", manifest.descriptor_().name()}, {"reason", region.error().ToString()}});
      Region lost;
      lost.persisted_user = UserOf(manifest);
      lost.persisted_id = persisted.id;
      lost.persisted_serial = manifest.serial();
      lost.persisted_files = FilesOf(manifest);
      persistence_.ForgetRegion(lost);
      continue;
    }
    KVM_FAULT_POINT(kvmd_restore_region);
    const auto rebuild = rebuilds.find(manifest.registry_epoch());
    if (rebuild == rebuilds.end()) {
      if ((*region)->filler != nullptr) host_cache_->FinishRestore(**region);
      continue;
    }
    rebuild->second.domain = manifest.domain();
    rebuild->second.rows[RowKey(manifest.row(), manifest.region_epoch())] = {(*region)->row, (*region)->info.region_epoch};
    rebuild->second.regions = rebuild->second.rows.size();
  }
  for (auto& [epoch, rebuild] : rebuilds) rebuilds_.push_back(std::move(rebuild));
  if (!rebuilds_.empty()) work_to_do_();
}

Result<Region*> Restorer::RestoreRegion(PersistedRegion& persisted, ClientId owner) {
  const kvmwire::StoredRegion& manifest = persisted.manifest;
  if (manifest.has_slab() && host_cache_ == nullptr) return MakeError(Errc::kUnsupported, "this kvmd has no host cache (--host-cache)");
  const Result<ModelSpec> spec = ModelSpec::FromCanonical(manifest.model_spec());
  if (!spec) return spec.error();
  const Result<Domain*> domain = domains_.Named(manifest.domain());
  if (!domain) return domain.error();
  ModelTable& models = (*domain)->models();
  if (const Result<ModelTable::Declared> declared = models.Declare(kNobody, manifest.owner_uid(), *spec); !declared)
    return declared.error();
  Owner as{owner, manifest.owner_pid(), manifest.owner_uid()};
  if (manifest.has_slab()) as = {kNoClient, static_cast<std::uint32_t>(::getpid()), ::geteuid()};
  Result<std::unique_ptr<Region>> prepared = (*domain)->PrepareRegion(as.client, manifest.descriptor_(), std::move(persisted.fds));
  Result<Region*> added = prepared ? (*domain)->AddRegion(as, std::move(*prepared)) : Result<Region*>(prepared.error());
  models.ForgetClient(kNobody);
  if (!added) return added;
  Region& region = **added;
  if (manifest.has_slab()) {
    if (Status restored = host_cache_->Restore(**domain, region, manifest.slab(), persisted.process); !restored) {
      (*domain)->StartLeaving(region, /*asks_importers=*/false);
      return restored.error();
    }
  }
  if (manifest.has_slab()) {
    domains_.granted().AddSlab(manifest.slab().writer_uid(), region);
  } else {
    domains_.granted().Registered(region);
  }
  region.owner_instance = manifest.owner_instance();
  region.persisted_user = UserOf(manifest);
  region.persisted_id = persisted.id;
  region.persisted_serial = manifest.serial();
  region.persisted_files = FilesOf(manifest);
  // Until it has an owner again: the process that reconnects, or a process that adopts it.
  if (!manifest.has_slab()) (*domain)->MakeOrphan(region, {std::chrono::steady_clock::now(), persisted.process});
  return added;
}

// True if there is more to do.
bool Restorer::Work() {
  if (rebuilds_.empty()) return false;
  Rebuild& rebuild = rebuilds_.back();
  Domain* domain = domains_.Find(rebuild.domain);
  const WorkBudget budget;
  if (domain != nullptr && (!ReadSome(rebuild, *domain, budget) || !FinishSome(rebuild, *domain, budget))) return true;
  KVM_FAULT_POINT(kvmd_rebuild_done);
  persistence_.ForgetRegistry(rebuild.old.header().epoch);
  rebuilds_.pop_back();
  return !rebuilds_.empty();
}

// Clients have chosen the keys, so an entry may take as many steps as there are entries that share
// its place. True: all are read.
bool Restorer::ReadSome(Rebuild& rebuild, Domain& domain, const WorkBudget& budget) {
  const IndexReader& index = rebuild.old.index();
  const std::uint64_t from = rebuild.slot;
  for (; rebuild.slot < index.slots() && !budget.used_up(); ++rebuild.slot) {
    Spend(1);
    IndexEntry entry;
    if (!index.ReadSlot(rebuild.slot, entry)) continue;
    const auto row = rebuild.rows.find(RowKey(entry.region, entry.region_epoch));
    if (row == rebuild.rows.end()) continue;
    Region* region = domain.FindRegion(row->second.first, row->second.second);
    if (region == nullptr || !region->serving()) continue;
    rebuild.entries += region->filler != nullptr ? host_cache_->RestoreEntry(*region, entry) : domain.Restore(*region, entry);
  }
  if (rebuild.slot > from) {
    if (host_cache_ != nullptr) host_cache_->UseRestored();
    KVM_FAULT_POINT(kvmd_rebuild_slice);
  }
  return rebuild.slot == index.slots();
}

// From here on the new registry is the one that a next kvmd would start from. True: all regions are
// stored as regions of it.
bool Restorer::FinishSome(Rebuild& rebuild, Domain& domain, const WorkBudget& budget) {
  for (; !rebuild.rows.empty(); rebuild.rows.erase(rebuild.rows.begin())) {
    if (budget.used_up()) return false;
    const auto [row, region_epoch] = rebuild.rows.begin()->second;
    Region* region = domain.FindRegion(row, region_epoch);
    if (region == nullptr || !region->serving()) continue;
    FinishRegion(domain, *region);
    KVM_FAULT_POINT(kvmd_rebuild_region_persisted);
  }
  Log(LogLevel::kInfo, "registry_restored",
      {{"domain", rebuild.domain},
       {"regions", rebuild.regions},
       {"entries", rebuild.entries},
       {"ms", static_cast<std::uint64_t>(
                  std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - rebuild.began).count())}});
  return true;
}

void Restorer::FinishRegion(Domain& domain, Region& region) {
  Spend(region.fds.size() * kDescriptorUnits + kNewMemoryUnits);
  if (region.filler == nullptr) return persistence_.PersistRegion(domain, region);
  Spend(region.info.block_count);
  host_cache_->FinishRestore(region);
  persistence_.PersistSlab(domain, region, *host_cache_);
}

bool Restorer::Reading(const Domain& domain) const {
  return std::any_of(rebuilds_.begin(), rebuilds_.end(), [&](const Rebuild& rebuild) { return rebuild.domain == domain.name(); });
}

}  // namespace kvm::daemon
