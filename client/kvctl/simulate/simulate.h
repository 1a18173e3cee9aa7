// kvctl simulate: hit ratios of the eviction policies over a trace or a workload, beside the
// highest ratio that any policy can reach, for choosing a policy and sizing a cache. Needs no kvmd.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/workload/request_source.h"

namespace kvm::ctl {

struct SimulateOptions : RequestSource {
  std::vector<std::string> policies{"all"};
  // blocks; empty: kDefaultPercents of the trace's distinct blocks
  std::vector<std::uint64_t> capacities;
};

inline constexpr std::uint64_t kDefaultPercents[] = {1, 2, 5, 10, 20};
inline constexpr std::string_view kMinName = "min";

// The names that --policy accepts, except "all".
std::vector<std::string> SimulatedPolicies();

struct SimulatedRow {
  std::string policy;
  std::uint64_t capacity_blocks = 0;
  std::uint64_t hits = 0;
};

struct SimulateReport {
  std::uint64_t requests = 0, blocks = 0, distinct_blocks = 0;
  std::uint64_t reused_blocks = 0;  // hits of a cache that never evicts
  std::vector<SimulatedRow> rows;   // by capacity, then by policy

  double Ratio(std::uint64_t hits) const noexcept { return static_cast<double>(hits) / static_cast<double>(blocks); }
  const SimulatedRow* Find(std::string_view policy, std::uint64_t capacity_blocks) const noexcept;
};

// kInvalidArgument: an unknown policy, a capacity out of range, a source without blocks.
[[nodiscard]] Result<SimulateReport> Simulate(const SimulateOptions& options, const std::vector<Request>& requests);

void PrintSimulation(const SimulateOptions& options, const SimulateReport& report, bool json);

// The whole command; returns the exit code.
int RunSimulate(const CommonOptions& common, const SimulateOptions& options);

}  // namespace kvm::ctl
