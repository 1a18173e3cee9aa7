// kvctl doctor on memory that dead workers have left.
#include "client/kvctl/doctor/doctor_checks.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

void AddOrphan(kvmwire::StatusReply& status, const std::string& region, bool host, bool owner_runs = false) {
  kvmwire::OrphanStatus& orphan = *status.add_orphan_list();
  orphan.set_region(region);
  orphan.set_owner_pid(12);
  orphan.set_owner_uid(7);
  orphan.set_bytes(std::uint64_t{1} << 30);
  orphan.set_host_memory(host);
  orphan.set_left_ms(59'500);
  orphan.set_owner_runs(owner_runs);
}

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("Doctor: memory of dead workers on a host and on GPUs is one warning each, with whose it is", "[unit]") {
  kvmwire::StatusReply status;
  CHECK(CheckOrphans(status).empty());
  AddOrphan(status, "of-a-worker-that-runs", true, true);
  CHECK(CheckOrphans(status).empty());
  AddOrphan(status, "pool-gpu", false);
  std::vector<Check> checks = CheckOrphans(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  INFO(checks[0].detail);
  CHECK(Contains(checks[0].detail, "1.0 GiB of GPU memory"));
  CHECK(Contains(checks[0].detail, "nvidia-smi"));
  CHECK(Contains(checks[0].detail, "pool-gpu (1.0 GiB, of process 12 of user 7, "));
  CHECK(Contains(checks[0].detail, "kvctl reclaim"));
  for (const char* name : {"a", "b", "c", "d", "e", "f"}) AddOrphan(status, name, true);
  checks = CheckOrphans(status);
  REQUIRE(checks.size() == 2);
  CHECK(Contains(checks[0].detail, "6.0 GiB of host memory"));
  CHECK(Contains(checks[0].detail, "and 2 more"));
  CHECK_FALSE(Contains(checks[0].detail, "pool-gpu"));
}
