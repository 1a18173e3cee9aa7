// What kvmd leaves with the service manager for the kvmd after it: registries, and of each region its descriptors, its
// owner's pidfd and a manifest that says what they are. None of it is touched when kvmd dies, so whatever moment that
// is, the last complete manifest of a region tells where its entries stand (docs/ARCHITECTURE.md, "A restart").
#pragma once

#include <string>
#include <vector>

#include "daemon/domain.h"
#include "daemon/service_manager.h"

namespace kvm::daemon {

struct KeptRegion {
  std::string id;
  kvmwire::StoredRegion manifest;
  std::vector<UniqueFd> fds;  // as the owner sent them
  UniqueFd process;           // the owner's pidfd; none if it was not known
};

struct KeptState {
  std::vector<UniqueFd> registries;
  std::vector<KeptRegion> regions;
};

// Single-threaded. Does nothing where there is no store.
class StateKeeper {
 public:
  explicit StateKeeper(const ServiceManager& manager) : manager_(manager) {}

  void KeepRegistry(const RegistrySegment& segment);
  void ForgetRegistry(std::uint64_t epoch);
  // A region that is new, or that has another owner, row or registry than it was kept with. `process`: its owner's, or
  // null.
  void KeepRegion(const Domain& domain, Region& region, const WatchedProcess* process);
  void ForgetRegion(Region& region);

  // Makes sense of what came back. What is incomplete is removed from the store.
  KeptState Sort(std::vector<PassedFd> passed);

 private:
  bool Store(const std::string& name, int fd);

  const ServiceManager& manager_;
};

}  // namespace kvm::daemon
