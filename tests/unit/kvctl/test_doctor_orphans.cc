// kvctl doctor on memory that dead workers have left.
#include "client/kvctl/doctor/doctor_checks.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

kvmwire::OrphanStatus& AddOrphan(kvmwire::StatusReply& status, const std::string& region, bool host_memory) {
  kvmwire::OrphanStatus& orphan = *status.add_orphan_list();
  orphan.set_region(region);
  orphan.set_owner_pid(77);
  orphan.set_owner_uid(1000);
  orphan.set_bytes(std::uint64_t{1} << 30);
  orphan.set_host_memory(host_memory);
  orphan.set_left_ms(120'000);
  return orphan;
}

bool Contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("Doctor: host memory of dead workers is a warning with its size, owner, end and the command that frees it", "[unit]") {
  kvmwire::StatusReply status;
  CHECK(CheckOrphans(status).empty());
  AddOrphan(status, "away", true).set_owner_runs(true);
  CHECK(CheckOrphans(status).empty());
  AddOrphan(status, "pool\x1b", true);
  AddOrphan(status, "held", true).set_leased(true);
  std::vector<Check> checks = CheckOrphans(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].name == "memory of dead workers");
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(checks[0].detail ==
        "2 GiB of host memory are kept for the next owner and still count against the dead one's pod or unit: "
        "pool? (1 GiB, of process 77 of user 1000, 2 min 0 s left), held (1 GiB, of process 77 of user 1000, kept while leases hold it). "
        "kvctl reclaim --region NAME or --all gives it back at once, --orphan-ttl-s sets how long it is kept");
  for (int i = 0; i < 5; ++i) AddOrphan(status, "more", true);
  checks = CheckOrphans(status);
  REQUIRE(checks.size() == 1);
  CHECK(Contains(checks[0].detail, "and 3 more"));
}

TEST_CASE("Doctor: memory of dead workers on GPUs is a warning of its own, which no other tool explains", "[unit]") {
  kvmwire::StatusReply status;
  AddOrphan(status, "gpu-pool", false);
  AddOrphan(status, "host-pool", true);
  const std::vector<Check> checks = CheckOrphans(status);
  REQUIRE(checks.size() == 2);
  CHECK_FALSE(Contains(checks[0].detail, "gpu-pool"));
  CHECK(checks[1].verdict == Verdict::kWarn);
  CHECK(checks[1].detail ==
        "1 GiB of GPU memory are kept for the next owner, so that nvidia-smi shows them in use by no process: "
        "gpu-pool (1 GiB, of process 77 of user 1000, 2 min 0 s left). "
        "kvctl reclaim --region NAME or --all gives it back at once, --orphan-ttl-s sets how long it is kept");
}
