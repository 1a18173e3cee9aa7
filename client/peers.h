// The peers' regions as this process has mapped them, and the registry that names them.
//
// A PeerSnapshot is immutable and shared; a change makes a new one, so lookups take one reference and
// run without a lock. A PeerMapping is unmapped when its last user lets go (snapshot, match, running
// import); if its owner is waiting for that, the acknowledgement goes out then (I7).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/memory_backend.h"
#include "kvm/geometry.h"
#include "proto/registry_view.h"

namespace kvm {

class PeerMapping {
 public:
  PeerMapping(Geometry geometry, PeerGenerations generations, std::shared_ptr<MemoryBackend> backend, std::shared_ptr<PeerMemory> memory,
              std::uint64_t identity, bool own);
  ~PeerMapping();
  PeerMapping(const PeerMapping&) = delete;
  PeerMapping& operator=(const PeerMapping&) = delete;

  const Geometry geometry;
  const PeerGenerations generations;
  const std::shared_ptr<MemoryBackend> backend;  // of the memory; null iff memory is
  const std::shared_ptr<PeerMemory> memory;      // null: only generations are mapped
  const std::uint64_t identity;                  // inode of the generation table: the same over kvmd's restarts
  const bool own;

  // Plan for copying to a region with `destination` geometry; made once. Thread-safe.
  // kBadGeometry: the blocks differ in size.
  [[nodiscard]] Result<std::shared_ptr<const CopyPlan>> PlanTo(const Geometry& destination) const;

  // Runs when the mapping goes. Thread-safe; at most one is kept.
  void SetReleaseAction(std::function<void()> action);

 private:
  mutable std::mutex mutex_;
  mutable std::vector<std::pair<Geometry, std::shared_ptr<const CopyPlan>>> plans_;
  std::function<void()> release_action_;
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
  Snapshots Get() const;

  // A new epoch: `registry` becomes current, what was current becomes previous. Reconnecting to a
  // living kvmd brings the same epoch again: rows are announced anew, the old ones serve meanwhile.
  void StartEpoch(RegistryView registry);
  void DropPrevious();

  void Add(std::uint32_t row, std::uint32_t region_epoch, std::shared_ptr<PeerMapping> mapping);
  // Forgets the region wherever it is known; `action` runs once nobody uses its mapping any more
  // (at once if it was not mapped).
  void Remove(std::uint32_t row, std::uint32_t region_epoch, std::function<void()> action);
  void RemoveByIdentity(std::uint64_t identity);

  // A mapping that exists already, so that a re-announced region is not mapped twice; may be null.
  std::shared_ptr<PeerMapping> FindByIdentity(std::uint64_t identity) const;
  std::size_t mapped_regions() const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const PeerSnapshot> current_, previous_;
};

}  // namespace kvm
