// HostCacheRestore: takes over the slabs of an earlier kvmd. A slab is restored at once, its blocks
// as the entries of the old registry are read.
//
// Called by HostCache for the restore of daemon/broker/: Restore for each slab, RestoreEntry for
// each entry of the old registry, UseRestored after a slice of those, FinishRestore once no entry
// of a slab is left. It owns the list of blocks that the policy does not know yet.
//
// Invariants:
//   - Until FinishRestore, the state of a slab's other slots is unknown, and no client is granted a
//     slot of the slab's class (SlabPool::Restoring).
//   - A slot that its last writer may still be writing becomes free only once that writer has
//     answered for it or its process has ended.
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

  // Restores a slab whose region is live in the domain and is owned by kvmd. `process`: that of the
  // slab's last writer, which may still run. kResourceExhausted, kInvalidArgument: this kvmd's
  // options do not allow the slab. Also the errors of Slab::Reopen.
  [[nodiscard]] Status Restore(Domain& domain, Region& region, const kvmwire::StoredSlab& stored,
                               const std::shared_ptr<WatchedProcess>& process, SteadyTime now);
  // Restores an entry of the old registry; entries may come in any order. True if the block is
  // stored and in the index.
  bool RestoreEntry(Region& region, const IndexEntry& entry);
  // Tells the policy of the blocks restored since the last call; called after each slice of
  // entries.
  void UseRestored(SteadyTime now);
  // Called when no entry of this slab is left: its other slots can be used now.
  void FinishRestore(Region& region);
  // Fills in what a next kvmd has to know of a slab. Returns the slab's writer; null if there has
  // been none.
  static const SlabWriter* Describe(const Region& region, kvmwire::StoredSlab& stored);

 private:
  SlabPool& pool_;
  SlabWriters& writers_;
  SlabAllocator& allocator_;
  const SlabQuota& quota_;
  std::map<SlabClass*, std::vector<policy::Slot>> restored_;  // since the last UseRestored
};

}  // namespace kvm::daemon
