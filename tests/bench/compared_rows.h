// Rows of a benchmark next to a baseline and a goal.
#pragma once

#include <boost/json/array.hpp>

#include <optional>
#include <string>
#include <vector>

#include "client/kvctl/bench/bench_rows.h"

namespace kvm::bench {

struct ComparedRow {
  ctl::BenchRow row;
  double baseline_bytes_per_s = 0;  // 0: the row has none
  std::optional<double> goal;
  bool at_most = false;  // the goal is an upper limit

  // Nothing without a goal.
  std::optional<bool> Reached() const noexcept;
};

// A table with one line for each row.
std::string RowsText(const std::vector<ComparedRow>& rows);
// kvctl's members of a row, and "baseline_bytes_per_s", "goal", "goal_kind", "reached".
boost::json::array RowsJson(const std::vector<ComparedRow>& rows);

}  // namespace kvm::bench
