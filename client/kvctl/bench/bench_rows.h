// Rows of a benchmark that measures the same thing in several forms.
#pragma once

#include <boost/json/array.hpp>

#include <string>
#include <vector>

#include "client/kvctl/bench/bench.h"

namespace kvm::ctl {

struct BenchRow {
  std::string name;   // in JSON
  std::string title;  // for people
  Unit unit = Unit::kGigabytesPerSecond;
  double value = 0;  // a median
  double bytes_per_s = 0;
  std::string note;
};

// A table with one line for each row.
std::string RowsText(const std::vector<BenchRow>& rows);
// [{"name", "title", "value", "unit", "bytes_per_s", "note"}, …]
boost::json::array RowsJson(const std::vector<BenchRow>& rows);

}  // namespace kvm::ctl
