// BlockStorer: brings a batch of one region's blocks into the host cache. It offers them to kvmd,
// copies those that are granted a slot, and reports which copies are complete and valid; a copy is
// validated like an import, by the block's generation before and after it. The Offloader's thread
// calls it; it waits for kvmd and for copies.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "client/connection/link.h"
#include "client/offload/store_queue.h"
#include "client/stats/atomic_stats.h"

namespace kvm {

// Not thread-safe: used by one thread.
class BlockStorer {
 public:
  BlockStorer(Link& link, AtomicStats& stats, StoreQueue& queue) : link_(link), stats_(stats), queue_(queue) {}

  // `batch`: blocks of `source`, not empty. All of them have ended afterwards, unless this throws,
  // for lack of memory: then some have not.
  void Process(OffloadSource& source, std::span<OffloadItem> batch);

 private:
  void Store(OffloadSource& source, std::span<OffloadItem> offered, const kvmwire::PrepareStoreReply& reply);
  // Copies to one slab and adds each block's outcome to `done`. Blocks behind a failed one are
  // queued again.
  void Copy(OffloadSource& source, std::span<OffloadItem> offered, std::span<const kvmwire::StoreGrant* const> grants,
            kvmwire::CompleteStore& done);
  std::vector<BlockStatus> CopyToSlab(OffloadSource& source, std::span<const OffloadItem> offered,
                                      std::span<const kvmwire::StoreGrant* const> grants, GrantedSlab& slab);
  std::shared_ptr<LocalMemory> MemoryFor(GrantedSlab& slab, const OffloadSource& source);

  Link& link_;
  AtomicStats& stats_;
  StoreQueue& queue_;
};

}  // namespace kvm
