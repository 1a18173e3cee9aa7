// OrphanPolicy: which regions stay when their owner has gone, and which of those are freed.
//
// It only decides; OrphanService asks it, and acts. It knows regions and the settings of their
// domain, and no clients. A region with leased blocks is not freed to make room. It has no state.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/registry/domain.h"

namespace kvm::daemon {

class OrphanPolicy {
 public:
  // The client that asks for the memory of orphans.
  struct Claimant {
    std::uint32_t uid = 0;
    bool rules_all = false;  // root, kvmd's own user, or an admin
    bool is_worker = false;
    std::uint32_t others_after_s = 0;  // --reclaim-others-after-s
  };
  enum class Claim { kNo, kLeased, kYes };

  // Whether a region is kept when its owner has gone, if there is a place for it.
  static bool Keeps(const Domain& domain, const Region& region);
  // Whether the limit of orphans is reached, so that another one replaces an existing one.
  static bool Full(const Domain& domain);
  // Whether so few rows of the region table are free that orphans are freed before registrations
  // are refused.
  static bool RowsAreFew(const Domain& domain);
  // The orphan that a new one replaces at the limit: the oldest; null if none may be replaced.
  static Region* Oldest(Domain& domain);
  // The reason why the orphan's time is over; null if it is not.
  static const char* WhyExpired(const Domain& domain, const Region& region, SteadyTime now);
  // Whether a request to reclaim selects this orphan. kLeased: only leases keep it from being
  // selected.
  static Claim Claims(const kvmwire::Reclaim& request, const Claimant& claimant, const Region& region, SteadyTime now);
};

}  // namespace kvm::daemon
