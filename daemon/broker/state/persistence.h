// Persistence: writes each change to the state store, so that a next kvmd can restore the state.
//
// The services call it when a region gets another owner, row or registry, and when one ends;
// without a state store it does nothing. Owns nothing. Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/state/state_store.h"
#include "daemon/host_cache/host_cache.h"
#include "daemon/registry/domain.h"

namespace kvm::daemon {

class Persistence {
 public:
  // `store`: null if there is none. Both outlive this.
  Persistence(StateStore* store, const ClientTable& clients) : store_(store), clients_(clients) {}

  // Whether there is a store; then each stored file has two descriptors.
  bool stores() const noexcept { return store_ != nullptr && store_->stores(); }

  std::optional<std::uint64_t> store_size() const noexcept { return store_ == nullptr ? std::nullopt : store_->store_size(); }

  void PersistRegistry(const RegistrySegment& segment);
  void ForgetRegistry(std::uint64_t epoch);
  // For a client's region, or an orphan.
  void PersistRegion(const Domain& domain, Region& region);
  // For a slab of the host cache.
  void PersistSlab(const Domain& domain, Region& region, const HostCache& host_cache);
  void ForgetRegion(Region& region);
  // Runs `then` when the store has all that was said of the user's regions so far, or at once:
  // before that, a next kvmd could hold the region of one process for another's.
  void AfterStored(std::uint32_t user, std::function<void()> then) const;

 private:
  StateStore* const store_;
  const ClientTable& clients_;
};

}  // namespace kvm::daemon
