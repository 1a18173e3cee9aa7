// Restorer: restores the regions and entries that an earlier kvmd has persisted.
//
// Broker passes it that state before the first client joins, and calls Work. Regions serve at once,
// as orphans until their owners reconnect. The old registry is sealed and can't be written any
// more, so its entries are copied into a new one slice by slice. It owns the old registries
// meanwhile. Single-threaded.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/state/domain_table.h"
#include "daemon/broker/state/persistence.h"
#include "daemon/broker/state/state_store.h"
#include "daemon/host_cache/host_cache.h"
#include "proto/shm/registry_view.h"

namespace kvm::daemon {

class Restorer {
 public:
  // `host_cache`: null if there is none. All outlive the restorer.
  Restorer(const std::function<void()>& work_to_do, ClientTable& clients, DomainTable& domains, Persistence& persistence,
           HostCache* host_cache)
      : work_to_do_(work_to_do), clients_(clients), domains_(domains), persistence_(persistence), host_cache_(host_cache) {}

  void Restore(PersistedState state);
  // Reads a slice of the old registries; true if there is more.
  bool Work();
  // Whether entries of this domain are still to come.
  bool Reading(const Domain& domain) const;

 private:
  // Entries of an old registry on their way into the new one.
  struct Rebuild {
    RegistryView old;
    std::string domain;
    // Row and epoch: old → new
    std::unordered_map<std::uint64_t, std::pair<std::uint32_t, std::uint32_t>> rows;
    std::uint64_t slot = 0, entries = 0, regions = 0;
    std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
  };

  Result<Region*> RestoreRegion(PersistedRegion& persisted, ClientId owner);
  bool ReadSome(Rebuild& rebuild, Domain& domain, const WorkBudget& budget);
  bool FinishSome(Rebuild& rebuild, Domain& domain, const WorkBudget& budget);
  void FinishRegion(Domain& domain, Region& region);

  const std::function<void()>& work_to_do_;
  ClientTable& clients_;
  DomainTable& domains_;
  Persistence& persistence_;
  HostCache* const host_cache_;
  std::vector<Rebuild> rebuilds_;
};

}  // namespace kvm::daemon
