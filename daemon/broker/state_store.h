// StateStore: stores kvmd's state with the service manager for the next kvmd: registries, and for
// each region its descriptors, its owner's pidfd and a manifest that describes them. None of it
// changes when kvmd dies. So at any moment, the last complete manifest of a region tells which
// registry has its entries (docs/internals/restart.md).
//
// systemd stores an open file once: it silently drops a second name for the same file, such as the
// pidfd of an owner of several regions, or an allocation of several segments. So each file is
// stored once under a name of its own, with a count of its users, and manifests refer to that name.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "daemon/registry/domain.h"
#include "daemon/system/service_manager.h"
#include "proto/base/inode.h"

namespace kvm::daemon {

struct PersistedRegion {
  std::string id;
  kvmwire::StoredRegion manifest;
  std::vector<UniqueFd> fds;                // as the owner sent them
  std::shared_ptr<WatchedProcess> process;  // the owner's; shared by its regions
};

// The names of all descriptors that are stored for a region, except its manifest.
std::vector<std::string> FilesOf(const kvmwire::StoredRegion& manifest);

struct PersistedState {
  std::vector<UniqueFd> registries;
  std::vector<PersistedRegion> regions;
};

// Single-threaded. Does nothing where there is no store.
class StateStore {
 public:
  explicit StateStore(const ServiceManager& manager) : manager_(manager) {}

  // Whether there is a store; then each stored file has two descriptors.
  bool stores() const noexcept { return manager_.has_store(); }

  void PersistRegistry(const RegistrySegment& segment);
  void ForgetRegistry(std::uint64_t epoch);
  // Stores a region that is new, or that has got another owner, row or registry. `process`: its
  // owner's, or null. `slab`: set for a slab of the host cache, else null.
  void PersistRegion(const Domain& domain, Region& region, const WatchedProcess* process, const kvmwire::StoredSlab* slab = nullptr);
  void ForgetRegion(Region& region);

  // Interprets the descriptors that came back from the service manager. Incomplete state is removed
  // from the store.
  PersistedState Sort(std::vector<PassedFd> passed);

 private:
  struct File {
    UniqueFd fd;
    FileId id;
    unsigned uses = 0;
  };

  bool Store(const std::string& name, int fd);
  std::string PersistFile(int fd);  // its name
  void DropFile(const std::string& name);
  void DropFiles(const std::vector<std::string>& names);

  const ServiceManager& manager_;
  std::map<std::string, File> files_;  // by name
};

}  // namespace kvm::daemon
