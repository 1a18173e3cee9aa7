#include "daemon/broker/domain_table.h"

#include <utility>

#include "daemon/system/config_domains.h"
#include "daemon/system/log.h"
#include "daemon/system/work_meter.h"
#include "proto/base/fault_point.h"

namespace kvm::daemon {
namespace {

// The kernel makes a segment's pages at once.
constexpr std::uint64_t kBytesPerUnitOfSegment = 4096;

}  // namespace

DomainTable::DomainTable(const Config& config, Persistence& persistence, std::function<void(Domain&)> dropping)
    : config_(config),
      persistence_(persistence),
      dropping_(std::move(dropping)),
      descriptors_(config, persistence.stores(), persistence.store_size()) {}

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
  if (Domain* found = Find(name)) return found;
  if (domains_.size() >= config_.max_domains && !DropIdle()) {
    return MakeError(Errc::kResourceExhausted,
                     "no room for domain " + name + ": the limit is " + std::to_string(config_.max_domains) + " (--max-domains)");
  }
  Result<std::unique_ptr<Domain>> domain = Domain::Create(name, config_, descriptors_);
  if (!domain) {
    LogLimited(LogLevel::kError, "domain_failed", {{"domain", name}, {"reason", domain.error().ToString()}});
    return MakeError(Errc::kResourceExhausted, "domain " + name + ": " + domain.error().ToString());
  }
  LogLimited(LogLevel::kInfo, "domain_created", {{"domain", name}, {"segment_bytes", (*domain)->segment().size()}});
  Spend((*domain)->segment().size() / kBytesPerUnitOfSegment);
  (*domain)->OnFreed([this](Region& region) { granted_->Freed(region); });
  persistence_.PersistRegistry((*domain)->segment());
  KVM_FAULT_POINT(kvmd_restore_registry);
  return domains_.emplace(name, std::move(*domain)).first->second.get();
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

// A domain is kept when its last client leaves, since the next one is likely to come soon, but not
// at the price of another domain.
bool DomainTable::DropIdle() {
  for (auto domain = domains_.begin(); domain != domains_.end(); ++domain) {
    if (domain->second->clients > 0 || !domain->second->idle()) continue;
    LogLimited(LogLevel::kInfo, "domain_dropped", {{"domain", domain->first}, {"reason", "idle, another one needs its place"}});
    domain->second->segment().SetState(layout::SegmentState::kSuperseded);
    dropping_(*domain->second);
    domain->second->ForEachRegion([&](Region& region) {
      persistence_.ForgetRegion(region);
      granted_->Freed(region);
    });
    persistence_.ForgetRegistry(domain->second->epoch());
    domains_.erase(domain);
    return true;
  }
  return false;
}

}  // namespace kvm::daemon
