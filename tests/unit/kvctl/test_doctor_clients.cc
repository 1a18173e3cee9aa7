// kvctl doctor on clients that were given wrong blocks, or that wait for nothing.
#include "client/kvctl/doctor/doctor_checks.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

kvmwire::StatusReply OneClient() {
  kvmwire::StatusReply status;
  kvmwire::ClientStatus& client = *status.add_client_list();
  client.set_name("worker-1");
  client.set_pid(12);
  return status;
}

bool Says(const std::vector<Check>& checks, const std::string& part) { return checks[0].detail.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("Doctor: a client that was given damaged blocks is named, with what to look at next", "[unit]") {
  kvmwire::StatusReply status = OneClient();
  kvmwire::StatsReport& stats = *status.mutable_client_list(0)->mutable_stats();
  stats.set_blocks_verified(500);
  CHECK(CheckClientList(status).empty());
  stats.set_blocks_corrupt(2);
  const std::vector<Check> checks = CheckClientList(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(Says(checks, "worker-1 (pid 12) was given 2 wrong blocks"));
  CHECK(Says(checks, "of 500"));
  CHECK(Says(checks, "kvctl verify"));
}

TEST_CASE("Doctor: a client whose process kvmd can't watch is named, whatever its number", "[unit]") {
  kvmwire::StatusReply status = OneClient();
  status.mutable_client_list(0)->set_pid(0);
  CHECK(CheckClientList(status).empty());
  status.mutable_client_list(0)->set_process_not_watched(true);
  const std::vector<Check> checks = CheckClientList(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(Says(checks, "only by the end of the connection"));
}

TEST_CASE("Doctor: a client that mostly waits in vain is named, and a few such waits are none", "[unit]") {
  kvmwire::StatusReply status = OneClient();
  kvmwire::StatsReport& stats = *status.mutable_client_list(0)->mutable_stats();
  stats.set_computing_waits(8);
  stats.set_computing_waits_in_vain(8);
  CHECK(CheckClientList(status).empty());
  stats.set_computing_waits(100);
  stats.set_computing_waits_in_vain(20);
  CHECK(CheckClientList(status).empty());
  stats.set_computing_waits_in_vain(80);
  const std::vector<Check> checks = CheckClientList(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(Says(checks, "80 times in vain"));
}
