// OrphanPolicy: which regions stay when their owner has gone, and which of those are freed.
//
// It only decides; OrphanService asks it, and acts. It knows regions and the settings, and no
// clients. A region with leased blocks is not freed to make room. It has no state besides the
// settings.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/registry/domain.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class OrphanPolicy {
 public:
  // The client that asks for the memory of orphans.
  struct Claimant {
    std::uint32_t uid = 0;
    bool rules_all = false;  // root, or kvmd's own user
    bool is_worker = false;
  };
  enum class Claim { kNo, kLeased, kYes };

  // `config` outlives the policy.
  explicit OrphanPolicy(const Config& config) : config_(config) {}

  // Whether a region is kept when its owner has gone, if there is a place for it.
  bool Keeps(const Region& region) const;
  // Whether the limit of orphans is reached, so that another one replaces an existing one.
  bool Full(const Domain& domain) const;
  // Whether so few rows of the region table are free that orphans are freed before registrations
  // are refused.
  static bool RowsAreFew(const Domain& domain);
  // The orphan that a new one replaces at the limit: the oldest; null if none may be replaced.
  static Region* Oldest(Domain& domain);
  // The reason why the orphan's time is over; null if it is not.
  const char* WhyExpired(const Region& region, SteadyTime now) const;
  // Whether a request to reclaim selects this orphan. kLeased: only leases keep it from being
  // selected.
  static Claim Claims(const kvmwire::Reclaim& request, const Claimant& claimant, const Region& region, SteadyTime now);

 private:
  const Config& config_;
};

}  // namespace kvm::daemon
