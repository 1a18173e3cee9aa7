#include "client/kvctl/bench/bench_rows.h"

#include <boost/json/object.hpp>

#include <sstream>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {

std::string RowsText(const std::vector<BenchRow>& rows) {
  Table table({"what", ">rate", ">median", "note"});
  for (const BenchRow& row : rows) {
    table.Add({row.title, HumanValue(row.bytes_per_s / 1e9, Unit::kGigabytesPerSecond), HumanValue(row.value, row.unit), row.note});
  }
  std::ostringstream text;
  table.Print(text);
  return text.str();
}

boost::json::array RowsJson(const std::vector<BenchRow>& rows) {
  boost::json::array array;
  for (const BenchRow& row : rows) {
    array.push_back(boost::json::object{{"name", row.name},
                                        {"title", row.title},
                                        {"value", row.value},
                                        {"unit", UnitName(row.unit)},
                                        {"bytes_per_s", row.bytes_per_s},
                                        {"note", row.note}});
  }
  return array;
}

}  // namespace kvm::ctl
