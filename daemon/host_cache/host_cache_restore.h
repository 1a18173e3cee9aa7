// A host cache that outlives its kvmd: slabs are restored as they are, blocks as the old registry's
// entries are read.
//
// Called by HostCache for the restore of daemon/broker/: Restore for each slab, RestoreEntry for
// each entry of the old registry, UseRestored after a slice of those, FinishRestore once no entry
// of a slab's is left. It owns the list of blocks that the policy has yet to be told of.
//
// Invariants:
//   - Until FinishRestore a slab's other slots are unknown and nobody is granted one of its class
//     (SlabPool::Restoring).
//   - A slot that its last writer may still be writing is free only once that has answered or
//     ended.
// Single-threaded.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "daemon/host_cache/slab_allocator.h"
#include "daemon/host_cache/slab_pool.h"
#include "daemon/host_cache/slab_quota.h"
#include "daemon/host_cache/slab_writers.h"

namespace kvm::daemon {

class HostCacheRestore {
 public:
  // All outlive it.
  HostCacheRestore(SlabPool& pool, SlabWriters& writers, SlabAllocator& allocator, const SlabQuota& quota)
      : pool_(pool), writers_(writers), allocator_(allocator), quota_(quota) {}

  // A slab whose region is a live one of the domain, and nobody's. `process`: of its last writer,
  // which may still run. kResourceExhausted, kInvalidArgument: this kvmd's options have no place
  // for it. What Slab::Reopen says.
  [[nodiscard]] Status Restore(Domain& domain, Region& region, const kvmwire::StoredSlab& stored,
                               const std::shared_ptr<WatchedProcess>& process, SteadyTime now);
  // An entry of the old registry, in any order. True: the block is held, and in the index.
  bool RestoreEntry(Region& region, const IndexEntry& entry);
  // After a slice of entries: tells the policy.
  void UseRestored(SteadyTime now);
  // No entry of this slab's is left: its other slots can be used.
  void FinishRestore(Region& region);
  // What a next kvmd has to know of a slab. Its writer; null: there has been none.
  static const SlabWriter* Describe(const Region& region, kvmwire::StoredSlab& stored);

 private:
  SlabPool& pool_;
  SlabWriters& writers_;
  SlabAllocator& allocator_;
  const SlabQuota& quota_;
  std::map<SlabClass*, std::vector<policy::Slot>> restored_;  // since the last UseRestored
};

}  // namespace kvm::daemon
