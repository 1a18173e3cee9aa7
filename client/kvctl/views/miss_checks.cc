#include "client/kvctl/views/miss_checks.h"

#include <algorithm>
#include <array>
#include <string>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

struct Reason {
  std::uint64_t (kvmwire::StatsReport::*count)() const;
  const char* name;
  bool warns;
  const char* advice;
};

using Stats = kvmwire::StatsReport;
constexpr std::array<Reason, 6> kReasons{{
    {&Stats::misses_absent, "the next block is not published", false,
     "normal where prompts part there; kvctl explain --tokens says at which block a prompt does"},
    {&Stats::misses_other_model, "only a model is served that differs in a field", true,
     "kvctl doctor's check models and kvctl explain --model-spec name the field; start the engines with the same options"},
    {&Stats::misses_stale, "the block was rewritten after it was published", true,
     "pools are recycled faster than they are read: larger pools, or a host cache (--host-cache), whose blocks don't go so soon"},
    {&Stats::misses_unreachable, "the block is in memory that the worker can't import from", true,
     "kvctl clients (unmapped) and this doctor's check client say which region and why; kvctl topo shows which GPUs reach each other"},
    {&Stats::misses_too_short, "the prompt is shorter than a block", false, "a smaller block size of the engine shares shorter prompts"},
    {&Stats::misses_kvmd_away, "kvmd was away", true, "journalctl -u kvmd says why; workers reconnect by themselves"},
}};

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
    const Stats& totals = domain.client_totals();
    const auto of = [&](const Reason& reason) { return (totals.*reason.count)(); };
    std::uint64_t misses = 0;
    for (const Reason& reason : kReasons) misses += std::min(of(reason), totals.finds() - std::min(misses, totals.finds()));
    if (misses == 0) continue;
    const Reason& most =
        *std::max_element(kReasons.begin(), kReasons.end(), [&](const Reason& a, const Reason& b) { return of(a) < of(b); });
    const std::string absent = most.count == &Stats::misses_absent ? AdviceOfAbsent(domain) : "";
    checks.push_back({"misses", most.warns ? Verdict::kWarn : Verdict::kOk,
                      (status.domains_size() > 1 ? Printable(domain.name()) + ": " : "") + HumanCount(misses) + " of " +
                          HumanCount(totals.finds()) + " lookups ended before their last block, " +
                          HumanPercent(static_cast<double>(std::min(of(most), misses)), static_cast<double>(misses)) + " of them because " +
                          most.name + ". " + (absent.empty() ? most.advice : absent)});
  }
  return checks;
}

}  // namespace kvm::ctl
