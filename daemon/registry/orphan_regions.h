// OrphanRegions: the regions of a domain whose owner has gone. It lists them, finds those that
// conflict with a new registration, and gives one to a new owner.
//
// Called by Domain for OrphanService (daemon/broker/), which decides which orphan is freed and
// when. It owns nothing: RegionTable owns the regions.
//
// A live region becomes an orphan when its owner's connection ends, and live again when a client
// takes it over. Blocks of an orphan can be imported, but no block can be published to it. It
// counts in the account of its last owner. Single-threaded.
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
  // Orphans of this user that conflict with `region` and whose owner's process has ended: those of
  // the same name, and those of the same model and shard with blocks of another size.
  std::vector<Region*> InTheWayOf(const Region& region, std::uint32_t owner_uid) noexcept;
  // The same for a region that a client is going to register. Only orphans of this user are
  // returned, since the client's statements have not been checked yet.
  std::vector<Region*> InTheWayOf(const kvmwire::RegionDescriptor& announced, std::uint32_t owner_uid);

  // Gives an orphan, with its entries, to `owner`. kResourceExhausted: a quota of the new owner.
  [[nodiscard]] Status TakeOver(Region& region, const Owner& owner);

  std::uint64_t bytes() const noexcept;

 private:
  RegionTable& regions_;
  Accounts& accounts_;
};

}  // namespace kvm::daemon
