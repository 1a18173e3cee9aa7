#include "daemon/broker/state/persistence.h"

#include <utility>

namespace kvm::daemon {

void Persistence::PersistRegistry(const RegistrySegment& segment) {
  if (store_ != nullptr) store_->PersistRegistry(segment);
}

void Persistence::ForgetRegistry(std::uint64_t epoch) {
  if (store_ != nullptr) store_->ForgetRegistry(epoch);
}

void Persistence::PersistRegion(const Domain& domain, Region& region) {
  if (store_ == nullptr) return;
  const WatchedProcess* process = nullptr;
  if (region.orphan) {
    process = region.orphan->process.get();
  } else if (const Client* owner = clients_.Find(region.owner)) {
    process = owner->process.get();
  }
  store_->PersistRegion(domain, region, process);
}

void Persistence::PersistSlab(const Domain& domain, Region& region, const HostCache& host_cache) {
  if (store_ == nullptr) return;
  kvmwire::StoredSlab stored;
  const WatchedProcess* process = nullptr;
  if (const SlabWriter* writer = host_cache.Describe(region, stored)) {
    const Client* client = clients_.Find(writer->client);
    process = client == nullptr ? writer->process.get() : client->process.get();
  }
  store_->PersistRegion(domain, region, process, &stored);
}

void Persistence::ForgetRegion(Region& region) {
  if (store_ != nullptr) store_->ForgetRegion(region);
}

void Persistence::AfterStored(std::uint32_t user, std::function<void()> then) const {
  if (store_ == nullptr) return then();
  store_->AfterStored(user, std::move(then));
}

}  // namespace kvm::daemon
