// What a worker does where it, or kvmd, could not have something once: it says so, and has it
// later.
#include <algorithm>
#include <chrono>
#include <numeric>
#include <sstream>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/process/few_descriptors.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::FewDescriptors;
using test::KvmdProcess;

// Whether a line of kvmd's log has both in it.
bool Says(const KvmdProcess& kvmd, const std::string& event, const std::string& of = "") {
  std::istringstream log(kvmd.Log());
  for (std::string line; std::getline(log, line);) {
    if (line.find(event) != std::string::npos && line.find(of) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

TEST_CASE("Descriptors: a worker that lost a slab's descriptor stores no block in the slab, and gets the descriptor again",
          "[integration]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd({"--host-cache", "4M"});
  test::RegistryProbe probe(kvmd.socket());
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker", .offload = OffloadMode::kAsked});
  worker->Publish("a:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  std::vector<std::uint32_t> blocks(8);
  std::iota(blocks.begin(), blocks.end(), 0u);
  {
    const FewDescriptors few(0);
    REQUIRE(worker->region().Offload(blocks) == 8);
    REQUIRE(Eventually([&] { return worker->client().Stats().offloads_dropped == 8; }));
  }
  CHECK(test::HostCacheOf(probe).blocks() == 0);
  // One by one: memory that was granted in the first try is free again once the try has failed.
  for (const std::uint32_t block : blocks) worker->region().Offload({&block, 1});
  CHECK(test::StoredEventually(probe, 8) == 8);
  CHECK(worker->client().Stats().reconnects == 0);
}

TEST_CASE("Descriptors: a worker that lacks descriptors for a region that it adopts reports that, and returns the region",
          "[integration]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd;
  const auto adopter = test::StartWorker({.socket = kvmd.socket(), .name = "adopter"});
  test::RemoteWorker owner({.socket = kvmd.socket(), .name = "pool"});
  owner.Publish("a:4", 0);
  owner.Kill();
  REQUIRE(Eventually([&] { return Says(kvmd, "event=region_orphaned"); }));
  REQUIRE(Eventually([&] { return adopter->Find("a:4").size() == 4; }));
  RegionOptions options;
  options.name = "pool";
  options.geometry = adopter->region().geometry();
  {
    const FewDescriptors few(0);
    KVM_CHECK_ERROR(adopter->client().AdoptRegion(adopter->model(), options, After(10s)), Errc::kResourceExhausted, few.Says());
  }
  // No process writes it, and no blocks are found in it.
  CHECK(Eventually([&] { return Says(kvmd, "event=region_unregistered", "region=pool"); }));
  CHECK(Eventually([&] { return adopter->Find("a:4").empty(); }));
  KVM_REQUIRE_OK(adopter->client().AllocateRegion(adopter->model(), options, After(10s)));
  CHECK(adopter->client().Stats().reconnects == 0);
}

TEST_CASE("Registering: a region that kvmd had no room for on a new connection is registered once there is some", "[integration]") {
  KvmdProcess kvmd({"--max-regions-per-client", "1"});
  kvmd.Stop();
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "first", .start_offline = true});
  RegionOptions options;
  options.name = "second";
  options.geometry = worker->region().geometry();
  const Result<std::shared_ptr<Region>> second = worker->client().AllocateRegion(worker->model(), options, After(10s));
  KVM_REQUIRE_OK(second);
  kvmd.Start();
  REQUIRE(Eventually([&] { return Says(kvmd, "--max-regions-per-client"); }));
  REQUIRE(Eventually([&] { return Says(kvmd, "event=region_registered", "region=first"); }));
  CHECK_FALSE(Says(kvmd, "event=region_registered", "region=second"));
  worker->DropRegion();
  CHECK(Eventually([&] { return Says(kvmd, "event=region_registered", "region=second"); }, 30s));
  CHECK(worker->client().Stats().reconnects == 0);
}
