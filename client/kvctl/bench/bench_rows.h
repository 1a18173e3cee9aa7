// Rows of a benchmark that is measured against a baseline and a goal.
#pragma once

#include <boost/json/array.hpp>

#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "client/kvctl/bench/bench.h"

namespace kvm::ctl {

struct BenchRow {
  std::string name;   // in JSON
  std::string title;  // for people
  Unit unit = Unit::kRatio;
  // A median; nothing: not measured, and `note` says why
  std::optional<double> value;
  double bytes_per_s = 0, baseline_bytes_per_s = 0;  // 0: the row has none
  std::optional<double> goal;
  bool at_most = false;  // the goal is an upper limit
  std::string note;

  // Nothing without a goal or a value.
  std::optional<bool> Reached() const noexcept;
};

void PrintRows(std::ostream& out, const std::vector<BenchRow>& rows);
// [{"name", "title", "value", "unit", "bytes_per_s", "baseline_bytes_per_s", "goal", "goal_kind",
// "reached", "note"}, …]
boost::json::array RowsJson(const std::vector<BenchRow>& rows);

}  // namespace kvm::ctl
