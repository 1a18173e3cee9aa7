// Brings a batch of one region's blocks into the host cache: offers them to kvmd, copies those that
// are granted a slot, and reports which copies are whole and of blocks that had not been reused
// until they were (the same two looks at the generation as for any import). The Offloader's thread
// calls it; it waits for kvmd and for copies.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "client/connection/link.h"
#include "client/offload/store_queue.h"
#include "client/stats/atomic_stats.h"

namespace kvm {

// For one thread.
class BlockStorer {
 public:
  BlockStorer(Link& link, AtomicStats& stats, StoreQueue& queue) : link_(link), stats_(stats), queue_(queue) {}

  // `batch`: blocks of `source`, not empty.
  void Process(OffloadSource& source, std::vector<OffloadItem> batch);

 private:
  void Store(OffloadSource& source, std::span<const OffloadItem> offered, const kvmwire::PrepareStoreReply& reply);
  // Copies to one slab and adds each block's outcome to `done`; blocks behind a failed one are
  // queued again.
  void Copy(OffloadSource& source, std::span<const OffloadItem> offered, std::span<const kvmwire::StoreGrant* const> grants,
            kvmwire::CompleteStore& done);
  std::vector<BlockStatus> CopyToSlab(OffloadSource& source, std::span<const OffloadItem> offered,
                                      std::span<const kvmwire::StoreGrant* const> grants, GrantedSlab& slab);
  std::shared_ptr<LocalMemory> MemoryFor(GrantedSlab& slab, const OffloadSource& source);

  Link& link_;
  AtomicStats& stats_;
  StoreQueue& queue_;
};

}  // namespace kvm
