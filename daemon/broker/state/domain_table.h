// DomainTable: all domains by name, and the domain of each client.
//
// Broker asks it for a client's domain and the restorer for those of an earlier kvmd; a domain is
// made when it is first asked for. Owns the domains, and the counts of the descriptors that all of
// them keep and of the memory that is granted. Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "daemon/broker/clients/connection.h"
#include "daemon/broker/state/persistence.h"
#include "daemon/registry/descriptor_quota.h"
#include "daemon/registry/domain.h"
#include "daemon/registry/granted_memory.h"
#include "daemon/system/config.h"
#include "daemon/system/memory_freer.h"
#include "daemon/system/work_meter.h"

namespace kvm::daemon {

// Names a region while a client waits for its end. Its domain may be dropped meanwhile.
struct RegionRef {
  std::string domain;
  std::uint32_t row = 0, region_epoch = 0;
};

class DomainTable {
 public:
  // Takes what others have of a domain away from it, until the budget is used up; true: nothing is
  // left, and they have forgotten it.
  using GiveUp = std::function<bool(Domain&, const WorkBudget&)>;

  // `give_up` is called before an idle domain is destroyed. All outlive the table. `closer`: of
  // granted memory; null: it is closed at once.
  DomainTable(const Config& config, Persistence& persistence, MemoryFreer& memory_freer, DescriptorCloser* closer, GiveUp give_up);

  // A domain's registry while it is made. A client that keeps it keeps the domain's place.
  using Making = std::shared_ptr<RegistrySegment>;
  // The domain follows from the credentials alone: that of a [domain.NAME] which names the user or
  // the group, or else the one of --domain-mode. Makes a slice of it if there is none. Null: it is
  // not done yet, and is to be asked for again, with the same `making`. Errors: those of Named.
  [[nodiscard]] Result<Domain*> MakeFor(const Credentials& credentials, Making& making, const WorkBudget& budget) {
    return Make(NameFor(credentials), making, budget);
  }
  // Null if it has not been made.
  Domain* FindFor(const Credentials& credentials) const { return Find(NameFor(credentials)); }
  // Makes the domain if there is none of this name. kResourceExhausted: --max-domains, or no memory
  // for its registry, also once that of dropped domains is free.
  [[nodiscard]] Result<Domain*> Named(const std::string& name);
  Domain* Find(const std::string& name) const;  // null: there is none
  // Null if the region or its domain is gone.
  Region* Find(const RegionRef& region) const;
  static RegionRef RefOf(const Domain& domain, const Region& region);

  template <class Visit>
  void ForEach(Visit&& visit) const {
    for (const auto& [name, domain] : domains_) visit(*domain);
  }
  // The next one in the order of names; null: there is none.
  Domain* After(const std::string& name) const {
    const auto next = domains_.upper_bound(name);
    return next == domains_.end() ? nullptr : next->second.get();
  }
  std::uint64_t blocks() const;  // of all regions of all domains
  // The memory of registries that may still have to be made.
  std::uint64_t RegistryBytesToCome() const;
  const DescriptorQuota& descriptors() const noexcept { return descriptors_; }
  GrantedMemory& granted() const noexcept { return *granted_; }

 private:
  std::string NameFor(const Credentials& credentials) const;
  Result<Domain*> Make(const std::string& name, Making& making, const WorkBudget& budget);
  Domain* Add(const std::string& name, RegistrySegment segment);
  Error Failed(const std::string& name, const Error& error);
  // The place of an idle domain, or one that is being made.
  enum class Place { kNone, kLater, kFree };
  Place MakePlace(const WorkBudget& budget);
  bool DropUnused();
  void Drop(const std::string& name);

  const Config& config_;
  Persistence& persistence_;
  MemoryFreer& memory_freer_;  // of registries
  const GiveUp give_up_;
  DescriptorQuota descriptors_;  // of all domains
  const std::unique_ptr<GrantedMemory> granted_;
  std::map<std::string, std::unique_ptr<Domain>> domains_;
  // The clients that waited for one of these may have gone; the next client of its domain goes on
  // with it.
  std::map<std::string, Making> making_;
};

}  // namespace kvm::daemon
