#include "daemon/broker/services/orphan_policy.h"

#include <chrono>
#include <string_view>

namespace kvm::daemon {
namespace {

// How long memory that does not outlive its owner waits, after kvmd's restart, for its owner to
// reconnect.
constexpr std::chrono::seconds kMayBeAway{10};

}  // namespace

bool OrphanPolicy::Keeps(const Domain& domain, const Region& region) {
  if (domain.config().orphan_ttl_s == 0 || domain.config().max_orphans == 0 || !region.outlives_owner()) return false;
  // It has ended in an orderly way, and its message was lost or is late: the generations show the
  // end as well.
  return !region.generations.all_ended();
}

bool OrphanPolicy::Full(const Domain& domain) { return domain.orphans() >= domain.config().max_orphans; }

bool OrphanPolicy::RowsAreFew(const Domain& domain) { return domain.orphans() > 0 && domain.nearly_full(); }

// Regions whose owner still runs wait until it reconnects after kvmd's restart, and leased ones
// until the leases end.
Region* OrphanPolicy::Oldest(Domain& domain) {
  for (Region* region : domain.Orphans()) {
    if (region->pinned.empty() && region->orphan->process->Ended()) return region;
  }
  return nullptr;
}

const char* OrphanPolicy::WhyExpired(const Domain& domain, const Region& region, SteadyTime now) {
  if (region.generations.all_ended()) return "its owner has given it up";
  if (!region.pinned.empty()) return nullptr;
  const std::uint32_t ttl_s = domain.config().orphan_ttl_s;
  const bool kept = ttl_s > 0 && region.outlives_owner();
  const auto age = now - region.orphan->since;
  if (kept) return age >= std::chrono::seconds(ttl_s) ? "nobody came for it (--orphan-ttl-s)" : nullptr;
  return age >= kMayBeAway || region.orphan->process->Ended() ? "its owner did not come back" : nullptr;
}

OrphanPolicy::Claim OrphanPolicy::Claims(const kvmwire::Reclaim& request, const Claimant& claimant, const Region& region, SteadyTime now) {
  const layout::RegionInfo& info = region.info;
  const std::string_view device(reinterpret_cast<const char*>(info.device_uuid), sizeof(info.device_uuid));
  if (!request.name().empty() && request.name() != region.descriptor.name()) return Claim::kNo;
  if (!request.device_uuid().empty() && request.device_uuid() != device) return Claim::kNo;
  if (now - region.orphan->since < std::chrono::seconds(request.min_age_s())) return Claim::kNo;
  // A worker that needs memory of a device may reclaim that of any dead worker of the domain, after
  // the time in which the dead worker's user may start it anew; otherwise users reclaim their own.
  const bool own = claimant.rules_all || info.owner_uid == claimant.uid;
  const bool is_old = now - region.orphan->since >= std::chrono::seconds(claimant.others_after_s);
  if (!own && (!claimant.is_worker || !is_old || request.device_uuid().empty())) return Claim::kNo;
  if (!region.pinned.empty() && (!request.force() || !own)) return Claim::kLeased;
  return Claim::kYes;
}

}  // namespace kvm::daemon
