// kvctl doctor on what the host cache does not get.
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/doctor/doctor_checks.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

kvmwire::StatusReply CacheOf(const std::string& admission, std::uint64_t offloaded) {
  kvmwire::StatusReply status;
  status.mutable_host_cache()->set_admission(admission);
  status.add_domains()->mutable_host_cache()->set_stored(offloaded);
  return status;
}

}  // namespace

TEST_CASE("Doctor: a client that dropped blocks instead of offloading them is named, with their number", "[unit]") {
  kvmwire::StatusReply status;
  kvmwire::ClientStatus& client = *status.add_client_list();
  client.set_name("worker-1");
  client.set_pid(12);
  client.mutable_stats()->set_blocks_offloaded(1000);
  CHECK(CheckClientList(status).empty());
  client.mutable_stats()->set_offloads_dropped(4000);
  const std::vector<Check> checks = CheckClientList(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(checks[0].detail.find("worker-1 (pid 12) dropped 4,000 blocks") == 0);
  CHECK(checks[0].detail.find("copied 1,000") != std::string::npos);
}

TEST_CASE("Doctor: a list of clients that kvmd had to cut is a warning, since checks of the others are missing", "[unit]") {
  kvmwire::StatusReply status;
  CHECK(CutListNote(status).empty());
  status.set_lists_cut(true);
  const std::vector<Check> checks = CheckClientList(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  CHECK(checks[0].detail == CutListNote(status));
  CHECK(checks[0].detail.find("not complete") != std::string::npos);
}

TEST_CASE("Doctor: a host cache that refuses many blocks is a warning that says where to look next", "[unit]") {
  kvmwire::StatusReply status = CacheOf("publish", 1000);
  kvmwire::HostCacheDomain& cache = *status.mutable_domains(0)->mutable_host_cache();
  status.mutable_host_cache()->set_max_bytes(std::uint64_t{64} << 30);
  status.mutable_host_cache()->set_bytes(std::uint64_t{4} << 30);
  status.mutable_host_cache()->set_slab_bytes(std::uint64_t{1} << 30);
  cache.set_refused(100);
  cache.set_expired(100);
  CHECK(CheckHostCache(status).empty());
  cache.set_refused(101);
  std::vector<Check> checks = CheckHostCache(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].verdict == Verdict::kWarn);
  INFO(checks[0].detail);
  CHECK(checks[0].detail.find("101 blocks were offered and found no room, and 1,000 were stored") == 0);
  CHECK(checks[0].detail.find("4 GiB of 64 GiB are allocated") != std::string::npos);
  CHECK(checks[0].detail.find("host_cache_not_grown") != std::string::npos);
  // It has all of its memory.
  status.mutable_host_cache()->set_bytes(std::uint64_t{64} << 30);
  checks = CheckHostCache(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].detail.find("--host-cache-slab") != std::string::npos);
  cache.set_refused(0);
  cache.set_expired(101);
  checks = CheckHostCache(status);
  REQUIRE(checks.size() == 1);
  CHECK(checks[0].detail.find("--offload-timeout-ms") != std::string::npos);
}

TEST_CASE("Doctor: admission reuse without any stored block is a warning that names the engines that never offer", "[unit]") {
  CHECK(CheckHostCache({}).empty());
  CHECK(CheckHostCache(CacheOf("publish", 0)).empty());
  const std::vector<Check> empty = CheckHostCache(CacheOf("reuse", 0));
  REQUIRE(empty.size() == 1);
  CHECK(empty[0].verdict == Verdict::kWarn);
  CHECK(empty[0].detail.find("OffloadBeforeReuse") != std::string::npos);
  CHECK(empty[0].detail.find("vLLM") != std::string::npos);
  const std::vector<Check> some = CheckHostCache(CacheOf("reuse", 7));
  REQUIRE(some.size() == 1);
  CHECK(some[0].verdict == Verdict::kOk);
}
