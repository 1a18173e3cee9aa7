// kvm_bench's rows next to a baseline and a goal.
#include "tests/bench/compared_rows.h"
#include "tests/catch.h"

using namespace kvm;
using bench::ComparedRow;

TEST_CASE("Compared rows: a goal is reached from the right side, and without one there is no verdict", "[unit]") {
  ComparedRow row;
  row.row.value = 0.93;
  CHECK_FALSE(row.Reached().has_value());
  row.goal = 0.92;
  CHECK(row.Reached() == true);
  row.row.value = 0.91;
  CHECK(row.Reached() == false);
  row.at_most = true;
  CHECK(row.Reached() == true);
}

TEST_CASE("Compared rows: printed with rates, goal and verdict", "[unit]") {
  ComparedRow reached, missed;
  reached.row.title = "a";
  reached.row.unit = ctl::Unit::kRatio;
  reached.row.value = 0.95;
  reached.row.bytes_per_s = 380e9;
  reached.baseline_bytes_per_s = 400e9;
  reached.goal = 0.92;
  missed.row.title = "b";
  missed.row.unit = ctl::Unit::kMicroseconds;
  missed.row.value = 50;
  missed.row.bytes_per_s = 20e9;
  missed.goal = 40;
  missed.at_most = true;
  CHECK(bench::RowsText({reached, missed}) ==
        "what         rate     baseline   median        goal  reached  note\n"
        "a     380.00 GB/s  400.00 GB/s   0.95 x   >= 0.92 x  yes\n"
        "b      20.00 GB/s               50.0 µs  <= 40.0 µs  no\n");
  const boost::json::array json = bench::RowsJson({reached, missed});
  CHECK(json[0].at("reached").as_bool());
  CHECK(json[0].at("goal_kind").as_string() == "at_least");
  CHECK(json[0].at("baseline_bytes_per_s").as_double() == 400e9);
  CHECK_FALSE(json[1].at("reached").as_bool());
  CHECK(json[1].at("unit").as_string() == "us");
  CHECK(json[1].at("baseline_bytes_per_s").is_null());
}
