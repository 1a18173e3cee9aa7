#include "tests/bench/compared_rows.h"

#include <boost/json/object.hpp>

#include <sstream>

#include "client/kvctl/cli/text.h"

namespace kvm::bench {
namespace {

using ctl::HumanValue;
using ctl::Unit;

std::string RateCell(double bytes_per_s) { return bytes_per_s > 0 ? HumanValue(bytes_per_s / 1e9, Unit::kGigabytesPerSecond) : ""; }

std::string GoalCell(const ComparedRow& row) { return row.goal ? (row.at_most ? "<= " : ">= ") + HumanValue(*row.goal, row.row.unit) : ""; }

std::string ReachedCell(const ComparedRow& row) {
  const std::optional<bool> reached = row.Reached();
  if (!reached) return "";
  return *reached ? "yes" : "no";
}

template <class T>
boost::json::value OrNull(const std::optional<T>& value) {
  return value ? boost::json::value(*value) : boost::json::value(nullptr);
}

}  // namespace

std::optional<bool> ComparedRow::Reached() const noexcept {
  if (!goal) return std::nullopt;
  return at_most ? row.value <= *goal : row.value >= *goal;
}

std::string RowsText(const std::vector<ComparedRow>& rows) {
  ctl::Table table({"what", ">rate", ">baseline", ">median", ">goal", "reached", "note"});
  for (const ComparedRow& each : rows) {
    table.Add({each.row.title, RateCell(each.row.bytes_per_s), RateCell(each.baseline_bytes_per_s),
               HumanValue(each.row.value, each.row.unit), GoalCell(each), ReachedCell(each), each.row.note});
  }
  std::ostringstream text;
  table.Print(text);
  return text.str();
}

boost::json::array RowsJson(const std::vector<ComparedRow>& rows) {
  boost::json::array array;
  for (const ComparedRow& each : rows) {
    boost::json::object object = ctl::RowsJson({each.row})[0].as_object();
    object["baseline_bytes_per_s"] =
        each.baseline_bytes_per_s > 0 ? boost::json::value(each.baseline_bytes_per_s) : boost::json::value(nullptr);
    object["goal"] = OrNull(each.goal);
    object["goal_kind"] = each.goal ? boost::json::value(each.at_most ? "at_most" : "at_least") : boost::json::value(nullptr);
    object["reached"] = OrNull(each.Reached());
    array.push_back(std::move(object));
  }
  return array;
}

}  // namespace kvm::bench
