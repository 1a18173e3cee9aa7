// kvctl doctor on why lookups miss.
#include "client/kvctl/doctor/miss_checks.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

kvmwire::StatusReply Missed(void (kvmwire::StatsReport::*set)(std::uint64_t), std::uint64_t count) {
  kvmwire::StatusReply status;
  kvmwire::StatsReport& totals = *status.add_domains()->mutable_client_totals();
  totals.set_finds(100);
  (totals.*set)(count);
  return status;
}

bool Says(const Check& check, const std::string& part) { return check.detail.find(part) != check.detail.npos; }

}  // namespace

TEST_CASE("Doctor: the most frequent reason of misses is named with what to do about it", "[unit]") {
  kvmwire::StatusReply status = Missed(&kvmwire::StatsReport::set_misses_stale, 30);
  status.mutable_domains(0)->mutable_client_totals()->set_misses_absent(10);
  const std::vector<Check> checks = CheckMisses(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(Says(checks[0], "40 of 100 lookups"));
  CHECK(Says(checks[0], "75.0 % of them"));
  CHECK(Says(checks[0], "--host-cache"));
}

TEST_CASE("Doctor: each reason has advice, and those that can't be mended are no warning", "[unit]") {
  using Stats = kvmwire::StatsReport;
  const auto check = [](void (Stats::*set)(std::uint64_t)) { return CheckMisses(Missed(set, 5)).at(0); };
  CHECK(Says(check(&Stats::set_misses_other_model), "--model-spec"));
  CHECK(check(&Stats::set_misses_other_model).verdict == Verdict::kWarn);
  CHECK(Says(check(&Stats::set_misses_unreachable), "kvctl topo"));
  CHECK(Says(check(&Stats::set_misses_kvmd_away), "journalctl"));
  CHECK(check(&Stats::set_misses_too_short).verdict == Verdict::kOk);
  CHECK(check(&Stats::set_misses_absent).verdict == Verdict::kOk);
}

TEST_CASE("Doctor: blocks that are absent since the index or the host cache evicts are said to be", "[unit]") {
  kvmwire::StatusReply status = Missed(&kvmwire::StatsReport::set_misses_absent, 5);
  status.mutable_domains(0)->mutable_host_cache()->set_evicted(1234);
  CHECK(Says(CheckMisses(status).at(0), "the host cache has evicted 1,234 blocks"));
  status.mutable_domains(0)->mutable_counters()->set_evicted(7);
  CHECK(Says(CheckMisses(status).at(0), "raise --max-entries"));
}

TEST_CASE("Doctor: without misses there is no line about them", "[unit]") {
  CHECK(CheckMisses(Missed(&kvmwire::StatsReport::set_misses_absent, 0)).empty());
}
