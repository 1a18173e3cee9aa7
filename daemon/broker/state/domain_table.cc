#include "daemon/broker/state/domain_table.h"

#include <algorithm>
#include <utility>

#include "daemon/system/config_domains.h"
#include "daemon/system/log.h"
#include "proto/base/fault_point.h"

namespace kvm::daemon {

DomainTable::DomainTable(const Config& config, Persistence& persistence, MemoryFreer& memory_freer, DescriptorCloser* closer,
                         GiveUp give_up)
    : config_(config),
      persistence_(persistence),
      memory_freer_(memory_freer),
      give_up_(std::move(give_up)),
      descriptors_(config, persistence.stores(), persistence.store_size()),
      granted_(std::make_unique<GrantedMemory>(config_, descriptors_, closer)) {}

std::string DomainTable::NameFor(const Credentials& credentials) const {
  if (const DomainRule* rule = RuleFor(config_, credentials.uid, credentials.gid)) return rule->name;
  switch (config_.domain_mode) {
    case DomainMode::kUid: return "uid-" + std::to_string(credentials.uid);
    case DomainMode::kGid: return "gid-" + std::to_string(credentials.gid);
    case DomainMode::kNode: break;
  }
  return "node";
}

Result<Domain*> DomainTable::Named(const std::string& name) {
  Making making;
  for (;;) {
    const Result<Domain*> made = Make(name, making, WorkBudget());
    if (!made || *made != nullptr) return made;
  }
}

Result<Domain*> DomainTable::Make(const std::string& name, Making& making, const WorkBudget& budget) {
  if (Domain* found = Find(name)) return found;
  auto begun = making_.find(name);
  if (begun == making_.end()) {
    const Place place = domains_.size() + making_.size() < config_.max_domains ? Place::kFree : MakePlace(budget);
    if (place == Place::kLater) return nullptr;
    if (place == Place::kNone) {
      return MakeError(Errc::kResourceExhausted,
                       "no room for domain " + name + ": the limit is " + std::to_string(config_.max_domains) + " (--max-domains)");
    }
    Result<RegistrySegment> segment = Domain::BeginSegment(name, config_);
    if (!segment && memory_freer_.freeing()) return nullptr;
    if (!segment) return Failed(name, segment.error());
    begun = making_.emplace(name, std::make_shared<RegistrySegment>(std::move(*segment))).first;
  }
  making = begun->second;
  const Result<bool> whole = making->GoOn(budget);
  if (whole && !*whole) return nullptr;
  if (!whole && memory_freer_.freeing()) return nullptr;
  making_.erase(begun);
  return whole ? Result<Domain*>(Add(name, std::move(*making))) : Failed(name, whole.error());
}

Error DomainTable::Failed(const std::string& name, const Error& error) {
  LogLimited(LogLevel::kError, "domain_failed", {{"domain", name}, {"reason", error.ToString()}});
  return MakeError(Errc::kResourceExhausted, "domain " + name + ": " + error.ToString());
}

Domain* DomainTable::Add(const std::string& name, RegistrySegment segment) {
  std::unique_ptr<Domain> domain = Domain::Create(name, config_, descriptors_, std::move(segment));
  LogLimited(LogLevel::kInfo, "domain_created", {{"domain", name}, {"segment_bytes", domain->segment().size()}});
  domain->OnFreed([this](Region& region) { granted_->Freed(region); });
  persistence_.PersistRegistry(domain->segment());
  KVM_FAULT_POINT(kvmd_restore_registry);
  return domains_.emplace(name, std::move(domain)).first->second.get();
}

Domain* DomainTable::Find(const std::string& name) const {
  const auto found = domains_.find(name);
  return found == domains_.end() ? nullptr : found->second.get();
}

Region* DomainTable::Find(const RegionRef& region) const {
  Domain* domain = Find(region.domain);
  return domain == nullptr ? nullptr : domain->FindRegion(region.row, region.region_epoch);
}

RegionRef DomainTable::RefOf(const Domain& domain, const Region& region) { return {domain.name(), region.row, region.info.region_epoch}; }

std::uint64_t DomainTable::blocks() const {
  std::uint64_t blocks = 0;
  for (const auto& [name, domain] : domains_) blocks += domain->blocks();
  return blocks;
}

std::uint64_t DomainTable::RegistryBytesToCome() const {
  const std::uint64_t registry = LargestRegistryBytes(config_);
  const std::uint64_t most = MostDomains(config_), made = domains_.size();
  // The next kvmd makes registries of its own beside those that it takes over.
  const std::uint64_t again = persistence_.stores() ? made : 0;
  return registry * ((most > made ? most - made : 0) + again);
}

// One that is being made, and whose clients have gone meanwhile.
bool DomainTable::DropUnused() {
  const auto unused = std::find_if(making_.begin(), making_.end(), [](const auto& made) { return made.second.use_count() == 1; });
  if (unused == making_.end()) return false;
  OwnedMemory memory = std::move(*unused->second).TakeMemory();
  making_.erase(unused);
  memory_freer_.Free(std::move(memory));
  return true;
}

// A domain is kept when its last client leaves, since the next one is likely to come soon, but not
// at the price of another domain.
DomainTable::Place DomainTable::MakePlace(const WorkBudget& budget) {
  if (DropUnused()) return Place::kFree;
  const auto idle = std::find_if(domains_.begin(), domains_.end(),
                                 [](const auto& domain) { return domain.second->clients == 0 && domain.second->idle(); });
  if (idle == domains_.end()) return Place::kNone;
  if (!give_up_(*idle->second, budget)) return Place::kLater;
  Drop(idle->first);
  return Place::kFree;
}

void DomainTable::Drop(const std::string& name) {
  const auto domain = domains_.find(name);
  LogLimited(LogLevel::kInfo, "domain_dropped", {{"domain", name}, {"reason", "idle, another one needs its place"}});
  domain->second->segment().SetState(layout::SegmentState::kSuperseded);
  persistence_.ForgetRegistry(domain->second->epoch());
  OwnedMemory memory = std::move(domain->second->segment()).TakeMemory();
  domains_.erase(domain);
  memory_freer_.Free(std::move(memory));
}

}  // namespace kvm::daemon
