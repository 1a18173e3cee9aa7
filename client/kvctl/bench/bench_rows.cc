#include "client/kvctl/bench/bench_rows.h"

#include <boost/json/object.hpp>

#include <ostream>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

std::string RateCell(double bytes_per_s) { return bytes_per_s > 0 ? HumanValue(bytes_per_s / 1e9, Unit::kGigabytesPerSecond) : ""; }

std::string ReachedCell(const BenchRow& row) {
  const std::optional<bool> reached = row.Reached();
  if (!reached) return "";
  return *reached ? "yes" : "no";
}

template <class T>
boost::json::value OrNull(const std::optional<T>& value) {
  return value ? boost::json::value(*value) : boost::json::value(nullptr);
}
boost::json::value RateOrNull(double bytes_per_s) {
  return bytes_per_s > 0 ? boost::json::value(bytes_per_s) : boost::json::value(nullptr);
}

}  // namespace

std::optional<bool> BenchRow::Reached() const noexcept {
  if (!value || !goal) return std::nullopt;
  return at_most ? *value <= *goal : *value >= *goal;
}

void PrintRows(std::ostream& out, const std::vector<BenchRow>& rows) {
  Table table({"what", ">rate", ">baseline", ">median", ">goal", "reached", "note"});
  for (const BenchRow& row : rows) {
    table.Add({row.title, RateCell(row.bytes_per_s), RateCell(row.baseline_bytes_per_s), row.value ? HumanValue(*row.value, row.unit) : "-",
               row.goal ? (row.at_most ? "<= " : ">= ") + HumanValue(*row.goal, row.unit) : "", ReachedCell(row), row.note});
  }
  table.Print(out);
}

boost::json::array RowsJson(const std::vector<BenchRow>& rows) {
  boost::json::array array;
  for (const BenchRow& row : rows) {
    boost::json::object object{{"name", row.name},
                               {"title", row.title},
                               {"value", OrNull(row.value)},
                               {"unit", UnitName(row.unit)},
                               {"bytes_per_s", RateOrNull(row.bytes_per_s)},
                               {"baseline_bytes_per_s", RateOrNull(row.baseline_bytes_per_s)},
                               {"goal", OrNull(row.goal)},
                               {"goal_kind", nullptr},
                               {"reached", OrNull(row.Reached())},
                               {"note", row.note}};
    if (row.goal) object["goal_kind"] = row.at_most ? "at_most" : "at_least";
    array.push_back(std::move(object));
  }
  return array;
}

}  // namespace kvm::ctl
