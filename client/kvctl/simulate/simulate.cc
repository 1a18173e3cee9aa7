#include "client/kvctl/simulate/simulate.h"

#include <algorithm>
#include <optional>

#include "client/kvctl/simulate/simulated_cache.h"
#include "client/kvctl/workload/block_trace.h"
#include "daemon/policy/policies.h"

namespace kvm::ctl {
namespace {

// The chosen policies, in the order of SimulatedPolicies(), each once.
Result<std::vector<std::string>> ChosenPolicies(const std::vector<std::string>& names) {
  std::vector<std::string> known = SimulatedPolicies();
  for (const std::string& name : names) {
    if (name != "all" && std::find(known.begin(), known.end(), name) == known.end())
      return MakeError(Errc::kInvalidArgument, "--policy: unknown policy " + name);
  }
  if (std::find(names.begin(), names.end(), "all") != names.end()) return known;
  std::vector<std::string> chosen;
  for (const std::string& name : known) {
    if (std::find(names.begin(), names.end(), name) != names.end()) chosen.push_back(name);
  }
  return chosen;
}

Result<std::vector<std::uint64_t>> ChosenCapacities(std::vector<std::uint64_t> capacities, std::uint64_t distinct) {
  if (capacities.empty()) {
    for (const std::uint64_t percent : kDefaultPercents) capacities.push_back(std::max<std::uint64_t>(1, distinct * percent / 100));
  }
  for (const std::uint64_t capacity : capacities) {
    if (capacity == 0) return MakeError(Errc::kInvalidArgument, "--capacity-blocks: a cache has at least 1 block");
  }
  std::sort(capacities.begin(), capacities.end());
  capacities.erase(std::unique(capacities.begin(), capacities.end()), capacities.end());
  return capacities;
}

std::uint64_t HitsOf(const BlockTrace& trace, const std::string& policy, std::uint64_t capacity_blocks) {
  // A cache that is larger than the trace never evicts, so its capacity is reduced to save memory.
  const auto capacity = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity_blocks, trace.distinct()));
  const std::optional<policy::PolicyKind> kind = policy::PolicyFromName(policy);
  if (!kind) return SimulateMin(trace, capacity);
  return SimulateCache(trace, *policy::MakePolicy(*kind, capacity), capacity);
}

}  // namespace

std::vector<std::string> SimulatedPolicies() {
  std::vector<std::string> names;
  for (const policy::PolicyKind kind : policy::kAllPolicies) names.emplace_back(policy::PolicyName(kind));
  names.emplace_back(kMinName);
  return names;
}

const SimulatedRow* SimulateReport::Find(std::string_view policy, std::uint64_t capacity_blocks) const noexcept {
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const SimulatedRow& row) { return row.policy == policy && row.capacity_blocks == capacity_blocks; });
  return found == rows.end() ? nullptr : &*found;
}

Result<SimulateReport> Simulate(const SimulateOptions& options, const std::vector<Request>& requests) {
  const BlockTrace trace(requests);
  if (trace.blocks() == 0) return MakeError(Errc::kInvalidArgument, options.name() + ": no request has a block");
  if (trace.distinct() > policy::kMaxCapacity) return MakeError(Errc::kInvalidArgument, options.name() + ": too many different blocks");
  const Result<std::vector<std::string>> policies = ChosenPolicies(options.policies);
  if (!policies) return policies.error();
  const Result<std::vector<std::uint64_t>> capacities = ChosenCapacities(options.capacities, trace.distinct());
  if (!capacities) return capacities.error();
  SimulateReport report;
  report.requests = trace.requests();
  report.blocks = trace.blocks();
  report.distinct_blocks = trace.distinct();
  report.reused_blocks = trace.ReusedBlocks();
  for (const std::uint64_t capacity : *capacities) {
    for (const std::string& policy : *policies) report.rows.push_back({policy, capacity, HitsOf(trace, policy, capacity)});
  }
  return report;
}

int RunSimulate(const CommonOptions& common, const SimulateOptions& options) {
  Result<std::vector<Request>> requests = LoadRequests(options);
  if (!requests) return Fail(requests.error());
  const Result<SimulateReport> report = Simulate(options, *requests);
  if (!report) return Fail(report.error());
  PrintSimulation(options, *report, common.json);
  return 0;
}

}  // namespace kvm::ctl
