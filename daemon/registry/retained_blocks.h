// RetainedBlocks: finds the blocks that a lease can cover, those that kvmd itself keeps: in slabs
// of the host cache, and in the memory of dead workers.
//
// Called by Domain for the leases of daemon/broker/. It owns nothing: a block's pins are counted in
// its region (Region::Pin). The cache's policy, the eviction of entries and the choice of the
// orphan to free ask that count. Single-threaded.
#pragma once

#include <cstdint>

#include "daemon/registry/entry_table.h"
#include "daemon/registry/region_table.h"

namespace kvm::daemon {

struct RetainedBlock {
  Region* region = nullptr;
  std::uint32_t block = 0;
};

class RetainedBlocks {
 public:
  // Both outlive it.
  RetainedBlocks(RegionTable& regions, const EntryTable& entries) : regions_(regions), entries_(entries) {}

  // Where kvmd itself keeps the block that a match names: at that place, or as another replica of
  // the same key. kStale: the block is not what the match says any more. kUnsupported: only living
  // workers have it. kInvalidArgument: block out of range.
  [[nodiscard]] Result<RetainedBlock> Find(const kvmwire::LeaseSource& source);
  std::uint32_t leased_orphans() const noexcept;

 private:
  RegionTable& regions_;
  const EntryTable& entries_;
};

}  // namespace kvm::daemon
