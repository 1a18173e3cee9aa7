// StateStore: stores kvmd's state with the service manager for the next kvmd: registries, and for
// each region its descriptors, its owner's pidfd and a manifest that describes them. None of it
// changes when kvmd dies. So at any moment, the last complete manifest of a region tells which
// registry has its entries (docs/internals/restart.md).
//
// systemd stores an open file once: it silently drops a second name for the same file, such as the
// pidfd of an owner of several regions, or an allocation of several segments. So each file is
// stored once under a name of its own, with a count of its users, and manifests refer to that name.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "daemon/registry/domain.h"
#include "daemon/system/service_manager.h"
#include "proto/base/inode.h"
#include "proto/base/peer_fd.h"

namespace kvm::daemon {

struct PersistedRegion {
  std::string id;
  kvmwire::StoredRegion manifest;
  std::vector<PeerFd> fds;                  // as the owner sent them
  std::shared_ptr<WatchedProcess> process;  // the owner's; shared by its regions
};

// Whose region it is; of a slab of the host cache, whose writer's.
std::uint32_t UserOf(const kvmwire::StoredRegion& manifest);

// Names of all that is stored for a region, but its manifest.
std::vector<std::string> FilesOf(const kvmwire::StoredRegion& manifest);

struct PersistedState {
  std::vector<UniqueFd> registries;
  std::vector<PersistedRegion> regions;
};

// Single-threaded. Does nothing where there is no store. What is stored for one user reaches the
// store in order, but not at once (daemon/system/notify_queue.h): what must not be done before a
// next kvmd would know of it waits (AfterStored).
class StateStore {
 public:
  // Both outlive it. `closer`, if any, closes clients' descriptors.
  explicit StateStore(const ServiceManager& manager, DescriptorCloser* closer = nullptr) : manager_(manager), closer_(closer) {}

  // Whether there is a store; then each stored file has two descriptors.
  bool stores() const noexcept { return manager_.has_store(); }

  std::optional<std::uint64_t> store_size() const noexcept { return manager_.store_size(); }

  void PersistRegistry(const RegistrySegment& segment);
  void ForgetRegistry(std::uint64_t epoch);
  // Stores a region that is new, or that has got another owner, row or registry. `process`: its
  // owner's, or null. `slab`: set for a slab of the host cache, else null.
  void PersistRegion(const Domain& domain, Region& region, const WatchedProcess* process, const kvmwire::StoredSlab* slab = nullptr);
  void ForgetRegion(Region& region);
  // Runs `then` when the store has all that was said of the user's regions so far; at once, if it
  // has.
  void AfterStored(std::uint32_t user, std::function<void()> then) const { manager_.AfterStored(user, std::move(then)); }

  // Interprets the descriptors that came back from the service manager. Incomplete state is removed
  // from the store.
  PersistedState Sort(std::vector<PassedFd> passed);

 private:
  struct File {
    PeerFd fd;
    FileId id;
    unsigned uses = 0;
    std::uint32_t user = NotifyQueue::kOwnLane;
  };

  // Orders open files by the kernel's own order, whichever descriptors name them.
  struct FileOrder {
    bool operator()(int a, int b) const noexcept;
  };
  // By a descriptor in `files_`
  using Names = std::map<int, std::string, FileOrder>;

  std::string PersistFile(std::uint32_t user, int fd);  // its name
  void DropFile(const std::string& name);
  void DropFiles(const std::vector<std::string>& names);

  const ServiceManager& manager_;
  DescriptorCloser* const closer_;
  std::map<std::string, File> files_;  // by name
  // A client may have opened one device many times, so even the files of one inode are searched.
  std::map<FileId, Names> names_;
};

}  // namespace kvm::daemon
