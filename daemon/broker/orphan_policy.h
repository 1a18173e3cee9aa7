// OrphanPolicy: which regions stay without their owner, and which of those is to be given up.
//
// Names and never acts: OrphanService asks, and does what follows. Knows regions and the settings,
// no clients. What a region's leases hold is not given up to make room. Stateless but for the
// settings.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/registry/domain.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class OrphanPolicy {
 public:
  // Who asks for the memory of orphans.
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
  // Whether there are as many orphans as there may be, so that a next one takes the place of
  // another.
  bool Full(const Domain& domain) const;
  // Whether rows of the region table are so few that orphans make room before others are refused.
  static bool RowsAreFew(const Domain& domain);
  // The orphan that a new one replaces where there may be no more: the oldest; null if there is none to replace.
  static Region* Oldest(Domain& domain);
  // Why the orphan's time is over; null: it is not.
  const char* WhyExpired(const Region& region, SteadyTime now) const;
  // Whether a request to reclaim means this orphan. kLeased: it would, but for leases.
  static Claim Claims(const kvmwire::Reclaim& request, const Claimant& claimant, const Region& region, SteadyTime now);

 private:
  const Config& config_;
};

}  // namespace kvm::daemon
