// The output of kvctl simulate.
#include <boost/json/array.hpp>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/simulate/simulate.h"
#include "daemon/policy/policies.h"

namespace kvm::ctl {
namespace {

constexpr policy::PolicyKind kReference = policy::PolicyKind::kLru, kOurs = policy::PolicyKind::kHitDensity;

void PrintRows(const SimulateReport& report) {
  boost::json::array rows;
  for (const SimulatedRow& row : report.rows) {
    rows.push_back({{"policy", row.policy},
                    {"capacity_blocks", row.capacity_blocks},
                    {"hit_ratio", report.Ratio(row.hits)},
                    {"hits", row.hits},
                    {"blocks", report.blocks},
                    {"requests", report.requests},
                    {"distinct_blocks", report.distinct_blocks}});
  }
  PrintJson(rows);
}

// The part of the distance from LRU to MIN that the policy covers; "-" if one of the three was not
// simulated.
std::string GapClosed(const SimulateReport& report, std::uint64_t capacity) {
  const SimulatedRow* lru = report.Find(policy::PolicyName(kReference), capacity);
  const SimulatedRow* ours = report.Find(policy::PolicyName(kOurs), capacity);
  const SimulatedRow* min = report.Find(kMinName, capacity);
  if (lru == nullptr || ours == nullptr || min == nullptr || min->hits <= lru->hits) return "-";
  return HumanPercent(static_cast<double>(ours->hits) - static_cast<double>(lru->hits), static_cast<double>(min->hits - lru->hits));
}

// Prints the smallest capacity at which the best policy reaches 90 % of its hits at the largest
// capacity.
void PrintHint(const SimulateReport& report) {
  const SimulatedRow* best = nullptr;
  for (const SimulatedRow& row : report.rows) {
    if (row.policy == kMinName) continue;
    if (best == nullptr || row.hits > best->hits) best = &row;
  }
  if (best == nullptr || report.reused_blocks == 0) return;
  constexpr double kNear = 0.9;
  for (const SimulatedRow& row : report.rows) {
    if (row.policy != best->policy || static_cast<double>(row.hits) < kNear * static_cast<double>(best->hits)) continue;
    std::cout << "\nThe smallest of these capacities with 90 % of the most hits: " << HumanCount(row.capacity_blocks) << " blocks with "
              << row.policy << ", " << HumanPercent(static_cast<double>(row.hits), static_cast<double>(report.reused_blocks))
              << " of all reuse.\n";
    return;
  }
}

void PrintTable(const SimulateOptions& options, const SimulateReport& report) {
  FieldList head;
  head.Add("simulated", HumanCount(report.requests) + " requests of " + options.name());
  head.Add("blocks", HumanCount(report.blocks) + ", " + HumanCount(report.distinct_blocks) + " different");
  head.Add("reuse", HumanCount(report.reused_blocks) + " blocks, a hit ratio of " + FormatFixed(report.Ratio(report.reused_blocks), 4) +
                        ": what a cache that never evicts hits");
  head.Print(std::cout);
  std::cout << '\n';
  std::vector<std::string> titles{">capacity", ">of different"};
  std::vector<std::uint64_t> capacities;
  for (const SimulatedRow& row : report.rows) {
    if (row.capacity_blocks == report.rows.front().capacity_blocks) titles.push_back(">" + row.policy);
    if (capacities.empty() || capacities.back() != row.capacity_blocks) capacities.push_back(row.capacity_blocks);
  }
  titles.emplace_back(">gap closed");
  Table table(titles);
  for (const std::uint64_t capacity : capacities) {
    std::vector<std::string> cells{HumanCount(capacity),
                                   HumanPercent(static_cast<double>(capacity), static_cast<double>(report.distinct_blocks))};
    for (const SimulatedRow& row : report.rows) {
      if (row.capacity_blocks == capacity) cells.push_back(FormatFixed(report.Ratio(row.hits), 4));
    }
    cells.push_back(GapClosed(report, capacity));
    table.Add(cells);
  }
  table.Print(std::cout);
  PrintHint(report);
}

}  // namespace

void PrintSimulation(const SimulateOptions& options, const SimulateReport& report, bool json) {
  json ? PrintRows(report) : PrintTable(options, report);
}

}  // namespace kvm::ctl
