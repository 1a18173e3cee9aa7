// PeerTable: the peers' regions that this process has mapped, and the registry that names them.
//
// A PeerSnapshot is immutable and shared; a change makes a new one, so lookups take one reference
// and run without a lock. A match may keep a PeerMapping, but not the memory behind it. When a
// region is withdrawn, its payload is unmapped at the end of the last import that reads it (I7: no
// memory is freed while an importer has it mapped). Only then is the withdrawal acknowledged, if
// the owner waits for that.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/peers/device_set.h"
#include "cuda/memory_backend.h"
#include "kvm/geometry.h"
#include "proto/base/inode.h"
#include "proto/base/thread_safety.h"
#include "proto/shm/registry_view.h"

namespace kvm {

// A region's memory, mapped for each device that can reach it. The destructor unmaps it and then
// calls `released`.
struct PeerPayload {
  PeerPayload() = default;
  ~PeerPayload();
  PeerPayload(const PeerPayload&) = delete;
  PeerPayload& operator=(const PeerPayload&) = delete;

  // [device]; null: not mapped for it
  std::array<std::shared_ptr<PeerMemory>, DeviceSet::kMax> memories;
  std::function<void()> released;
};

class PeerMapping {
 public:
  struct Parts {
    Geometry geometry;
    PeerGenerations generations;
    std::shared_ptr<PeerPayload> payload;  // null: only generations are mapped
    std::string name;                      // of the region
    std::string content;                   // ContentOf the region
    // Of the generation table; it does not change when kvmd restarts
    FileId identity;
    std::size_t devices = 0;  // how many of the client's devices were considered
    bool own = false;
    bool kept = false;  // a slab of kvmd's host cache
    DeviceUuid device_uuid = kHostMemory;
  };
  explicit PeerMapping(Parts parts);
  PeerMapping(const PeerMapping&) = delete;
  PeerMapping& operator=(const PeerMapping&) = delete;

  const Geometry geometry;
  const PeerGenerations generations;
  const std::string name;
  const std::string content;
  const FileId identity;
  const std::size_t devices;
  const bool own;
  const bool kept;
  const DeviceUuid device_uuid;

  // How `device` reaches the memory; empty if it can't, or if the memory has been withdrawn.
  // Lock-free.
  std::optional<MemoryPath> PathTo(std::size_t device) const noexcept {
    const std::uint8_t path = paths_[device].load(std::memory_order_relaxed);
    if (path == kNone) return std::nullopt;
    return static_cast<MemoryPath>(path);
  }
  // From now on PathTo is empty for all devices, until the region is mapped again; imports under
  // way go on. Lock-free.
  void DropPaths() const noexcept;
  // The memory, kept mapped while the result lives; null once withdrawn. Thread-safe.
  std::shared_ptr<const PeerPayload> payload() const;
  // Drops the memory; `released` is called once no import uses it any more (at once if none does).
  void Retire(std::function<void()> released) KVM_EXCLUDES(mutex_);

  // The plan for copying to a region of geometry `destination`; it is made once and cached.
  // Thread-safe.
  // kBadGeometry: the blocks differ in size.
  [[nodiscard]] Result<std::shared_ptr<const CopyPlan>> PlanTo(const Geometry& destination) const;

 private:
  static constexpr std::uint8_t kNone = 0xFF;

  mutable std::array<std::atomic<std::uint8_t>, DeviceSet::kMax> paths_;
  mutable Mutex mutex_;
  std::shared_ptr<PeerPayload> payload_ KVM_GUARDED_BY(mutex_);
  mutable std::vector<std::pair<Geometry, std::shared_ptr<const CopyPlan>>> plans_ KVM_GUARDED_BY(mutex_);
};

struct PeerRegion {
  std::uint32_t region_epoch = 0;  // 0: nothing mapped in this row
  std::shared_ptr<PeerMapping> mapping;
};

struct PeerSnapshot {
  RegistryView registry;
  std::vector<PeerRegion> by_row;  // index: row of the region table
};

class PeerTable {
 public:
  // The snapshots for lookups: that of the current registry and, for a while after kvmd's restart,
  // that of the previous one. Either may be null.
  struct Snapshots {
    std::shared_ptr<const PeerSnapshot> current, previous;
  };
  Snapshots Get() const KVM_EXCLUDES(mutex_);

  // Called for a new connection: `registry` becomes the current one, and the current one becomes
  // the previous one. After a reconnect to a kvmd that has not restarted, the registry is the same:
  // its regions are announced again, and the old mappings are used meanwhile. Returns the
  // connection's number; changes with an older number are ignored.
  std::uint64_t StartConnection(RegistryView registry);
  void DropPrevious();

  // Whether a region is mapped in this row, by an announcement of this connection.
  bool Knows(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch) const;
  void Add(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, const std::shared_ptr<PeerMapping>& mapping);
  // Removes the region from the current and the previous registry, and retires its mapping if it
  // belongs to a peer and no other region uses it. It never removes this client's own regions,
  // since another client may have registered the same memory.
  void Remove(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, std::function<void()> released);
  // Called at the end of a region of this client: removes all mappings of its memory.
  void RemoveByIdentity(const FileId& identity);

  // A mapping of the same region from an earlier announcement, in this row or by the previous
  // registry; null if there is none. Both `name` and `identity` must match, since any process that
  // has a descriptor of a generation table can register it under another name.
  std::shared_ptr<PeerMapping> FindAgain(std::uint32_t row, std::uint32_t region_epoch, const std::string& name,
                                         const FileId& identity) const;
  std::size_t mapped_regions() const;

 private:
  mutable Mutex mutex_;
  std::uint64_t connection_ KVM_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<const PeerSnapshot> current_ KVM_GUARDED_BY(mutex_), previous_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
