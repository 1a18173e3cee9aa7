// Blocks that kvmd itself keeps, which a lease can be had of: in slabs of the host cache, and in
// memory that a process has left for good.
//
// Called by Domain for the leases of daemon/broker/. It owns nothing: what a lease pins is counted
// in its region (Region::Pin), and the policy, the eviction of entries and the choice of the orphan
// that goes ask there. Single-threaded.
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

  // Where kvmd itself keeps the block that a match names: there, or another replica of its key.
  // kStale: it is not what the match says any more. kUnsupported: living workers alone have it.
  // kInvalidArgument.
  [[nodiscard]] Result<RetainedBlock> Find(const kvmwire::LeaseSource& source);
  std::uint32_t leased_orphans() const noexcept;

 private:
  RegionTable& regions_;
  const EntryTable& entries_;
};

}  // namespace kvm::daemon
