// Regions without an owner: which there are, which conflict with a new registration, and giving one to
// another owner.
//
// Called by Domain for the orphan handling of daemon/broker/, which decides which orphan goes and
// when. It owns nothing: the regions are the region table's.
//
// A live region becomes an orphan when its owner's connection ends, and live again when somebody
// takes it over. An orphan serves as a live region does, but nobody publishes to it. Its last
// owner's account pays for it. Single-threaded.
#pragma once

#include <cstdint>
#include <vector>

#include "daemon/registry/accounts.h"
#include "daemon/registry/region_table.h"

namespace kvm::daemon {

class OrphanRegions {
 public:
  // Both outlive it.
  OrphanRegions(RegionTable& regions, Accounts& accounts) : regions_(regions), accounts_(accounts) {}

  std::vector<Region*> All() noexcept;  // the oldest first
  // Orphans that stand in the way of `region` and whose owner has ended: of the same name, or of
  // the same model and shard with blocks of another size.
  std::vector<Region*> InTheWayOf(const Region& region, std::uint32_t owner_uid) noexcept;
  // The same of a region that is only announced, and of this user's orphans only: nothing of it has
  // been proved yet.
  std::vector<Region*> InTheWayOf(const kvmwire::RegionDescriptor& announced, std::uint32_t owner_uid);

  // Gives an orphan to `owner`, entries and all. kResourceExhausted: a quota of the new owner.
  [[nodiscard]] Status TakeOver(Region& region, const Owner& owner);

  std::uint64_t bytes() const noexcept;

 private:
  RegionTable& regions_;
  Accounts& accounts_;
};

}  // namespace kvm::daemon
