#include "client/kvctl/doctor/miss_checks.h"

#include <algorithm>
#include <string>

#include "client/kvctl/cli/miss_reasons.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

// Absent blocks had been there where the index or the host cache evicts: more memory helps then.
std::string AdviceOfAbsent(const kvmwire::DomainStatus& domain) {
  if (domain.counters().evicted() + domain.counters().refused_full() > 0)
    return "the index has evicted or refused " + HumanCount(domain.counters().evicted() + domain.counters().refused_full()) +
           " blocks: raise --max-entries";
  if (domain.host_cache().evicted() > 0)
    return "the host cache has evicted " + HumanCount(domain.host_cache().evicted()) +
           " blocks: kvctl simulate says what a larger --host-cache would hit";
  return "";
}

}  // namespace

std::vector<Check> CheckMisses(const kvmwire::StatusReply& status) {
  std::vector<Check> checks;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    const kvmwire::StatsReport& totals = domain.client_totals();
    const auto of = [&](const MissReason& reason) { return (totals.*reason.count)(); };
    std::uint64_t misses = 0;
    for (const MissReason& reason : kMissReasons) misses += std::min(of(reason), totals.finds() - std::min(misses, totals.finds()));
    if (misses == 0) continue;
    const MissReason& most = *std::max_element(kMissReasons.begin(), kMissReasons.end(),
                                               [&](const MissReason& a, const MissReason& b) { return of(a) < of(b); });
    const std::string absent = most.count == &kvmwire::StatsReport::misses_absent ? AdviceOfAbsent(domain) : "";
    checks.push_back({"misses", most.warns ? Verdict::kWarn : Verdict::kOk,
                      (status.domains_size() > 1 ? Printable(domain.name()) + ": " : "") + HumanCount(misses) + " of " +
                          HumanCount(totals.finds()) + " lookups ended before their last block, " +
                          HumanPercent(static_cast<double>(std::min(of(most), misses)), static_cast<double>(misses)) + " of them because " +
                          std::string(most.meaning) + ". " + (absent.empty() ? std::string(most.advice) : absent)});
  }
  return checks;
}

}  // namespace kvm::ctl
