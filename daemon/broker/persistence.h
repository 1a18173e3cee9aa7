// Persistence: writes each change to the state store, so that a next kvmd can restore the state.
//
// The services call it when a region gets another owner, row or registry, and when one ends;
// without a state store it does nothing. Owns nothing. Single-threaded.
#pragma once

#include <cstdint>

#include "daemon/broker/client_table.h"
#include "daemon/broker/state_store.h"
#include "daemon/host_cache/host_cache.h"
#include "daemon/registry/domain.h"

namespace kvm::daemon {

class Persistence {
 public:
  // `store`: null if there is none. Both outlive this.
  Persistence(StateStore* store, const ClientTable& clients) : store_(store), clients_(clients) {}

  // Whether there is a store; then each stored file has two descriptors.
  bool stores() const noexcept { return store_ != nullptr && store_->stores(); }

  void PersistRegistry(const RegistrySegment& segment);
  void ForgetRegistry(std::uint64_t epoch);
  // For a client's region, or an orphan.
  void PersistRegion(const Domain& domain, Region& region);
  // For a slab of the host cache.
  void PersistSlab(const Domain& domain, Region& region, const HostCache& host_cache);
  void ForgetRegion(Region& region);

 private:
  StateStore* const store_;
  const ClientTable& clients_;
};

}  // namespace kvm::daemon
