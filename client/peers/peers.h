// The peers' regions as this process has mapped them, and the registry that names them.
//
// A PeerSnapshot is immutable and shared; a change makes a new one, so lookups take one reference and
// run without a lock. A match may keep a PeerMapping, but not the memory behind it: when a region is
// withdrawn its payload goes with the last import that is running (I7), and so does, if the owner waits
// for that, the acknowledgement.
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

// A region's memory, mapped for each device that can reach it. Unmaps on destruction, then runs `released`.
struct PeerPayload {
  PeerPayload() = default;
  ~PeerPayload();
  PeerPayload(const PeerPayload&) = delete;
  PeerPayload& operator=(const PeerPayload&) = delete;

  std::array<std::shared_ptr<PeerMemory>, DeviceSet::kMax> memories;  // [device]; null: not mapped for it
  std::function<void()> released;
};

class PeerMapping {
 public:
  struct Parts {
    Geometry geometry;
    PeerGenerations generations;
    std::shared_ptr<PeerPayload> payload;  // null: only generations are mapped
    std::string name;                      // of the region
    FileId identity;                       // of the generation table: the same over kvmd's restarts
    std::size_t devices = 0;               // how many of the client's devices were considered
    bool own = false;
    bool kept = false;  // a slab of kvmd's host cache
  };
  explicit PeerMapping(Parts parts);
  PeerMapping(const PeerMapping&) = delete;
  PeerMapping& operator=(const PeerMapping&) = delete;

  const Geometry geometry;
  const PeerGenerations generations;
  const std::string name;
  const FileId identity;
  const std::size_t devices;
  const bool own;
  const bool kept;

  // How `device` reaches the memory; nothing: not at all, or it has been withdrawn. Lock-free.
  std::optional<MemoryPath> PathTo(std::size_t device) const noexcept {
    const std::uint8_t path = paths_[device].load(std::memory_order_relaxed);
    if (path == kNone) return std::nullopt;
    return static_cast<MemoryPath>(path);
  }
  // Nobody reaches it any more, until it is mapped anew; who uses it now goes on. Lock-free.
  void GiveUpPaths() const noexcept;
  // The memory, kept mapped while the result lives; null once withdrawn. Thread-safe.
  std::shared_ptr<const PeerPayload> payload() const;
  // Lets go of the memory; `released` runs once nobody uses it any more (at once if nobody does).
  void Retire(std::function<void()> released) KVM_EXCLUDES(mutex_);

  // Plan for copying to a region with `destination` geometry; made once. Thread-safe.
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
  // What lookups use: the current registry, and while readers move over after kvmd's restart the one
  // before. Either may be null.
  struct Snapshots {
    std::shared_ptr<const PeerSnapshot> current, previous;
  };
  Snapshots Get() const KVM_EXCLUDES(mutex_);

  // A new connection: `registry` becomes current, what was current becomes previous. Reconnecting to a
  // living kvmd brings the same registry again: rows are announced anew, the old ones serve meanwhile.
  // Returns the connection's number; changes that come with an older one are ignored.
  std::uint64_t StartConnection(RegistryView registry);
  void DropPrevious();

  // Whether a region is mapped in this row, of this connection.
  bool Knows(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch) const;
  void Add(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, const std::shared_ptr<PeerMapping>& mapping);
  // Forgets the region, here and in the previous registry, and retires its mapping if it is a peer's and no other
  // region's. What somebody else registers says nothing of this client's own regions.
  void Remove(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, std::function<void()> released);
  // This client's own region goes: all mappings of its memory do.
  void RemoveByIdentity(const FileId& identity);

  // A mapping of the same region, made when it was announced before: in this row, or by the previous registry. Null: there
  // is none. `name` and `identity` together, since anybody who has mapped a generation table can send it.
  std::shared_ptr<PeerMapping> FindAgain(std::uint32_t row, std::uint32_t region_epoch, const std::string& name,
                                         const FileId& identity) const;
  std::size_t mapped_regions() const;

 private:
  mutable Mutex mutex_;
  std::uint64_t connection_ KVM_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<const PeerSnapshot> current_ KVM_GUARDED_BY(mutex_), previous_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm
