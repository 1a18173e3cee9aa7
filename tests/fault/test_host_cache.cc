// The host cache when its writers and kvmd die: nothing wrong is served, nothing is lost that need
// not be.
#include <chrono>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/busy_worker.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::HostCacheOf;
using test::KvmdProcess;
using test::RegistryProbe;
using test::RemoteWorker;
using test::StoredEventually;

constexpr std::chrono::seconds kGone{5};

}  // namespace

TEST_CASE("Host cache: workers killed while they offload cost no wrong byte, no slot and no descriptor", "[fault]") {
  constexpr std::uint64_t kSlabs = 8, kSlots = 32, kBlock = 4096;
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", std::to_string(kSlabs * kSlots * kBlock), "--host-cache-slab",
                    std::to_string(kSlots * kBlock)});
  RegistryProbe probe(kvmd.socket());
  const std::uint64_t seed = 7;
  INFO("seed " << seed);
  test::Random random(seed);
  test::BusyCrew crew(kvmd.socket(), seed, 3);
  for (int kill = 0; kill < 40; ++kill) {
    test::SleepMs(static_cast<int>(random.Below(60)));
    const auto victim = static_cast<std::size_t>(random.Below(crew.size()));
    crew.Kill(victim);
    crew.Replace(victim);
  }
  CHECK(crew.EndWell());
  REQUIRE(kvmd.running());
  const kvmwire::HostCacheDomain status = HostCacheOf(probe);
  CHECK(status.stored() > 0);
  CHECK(status.bytes() <= kSlabs * kSlots * kBlock);
  // Only the cache is left; each of its blocks has one entry.
  CHECK(test::Eventually([&] { return probe.live_regions() == HostCacheOf(probe).slabs(); }, kGone));
  CHECK(test::Eventually([&] { return probe.live_entries() == HostCacheOf(probe).blocks(); }, kGone));
  // Two descriptors and one more for writing of each slab, and this test's connection.
  CHECK(test::Eventually([&] { return probe.Status().clients() == 1; }, kGone));
  const int left = kvmd.SettledFds();
  // All slots are good for use again: a worker fills the cache to its last slot.
  RemoteWorker last({.socket = kvmd.socket(), .name = "last", .blocks = 512});
  last.Publish("fill:512", 0);
  CHECK(StoredEventually(probe, kSlabs * kSlots) == kSlabs * kSlots);
  last.Kill();
  CHECK(test::Eventually([&] { return probe.Status().clients() == 1; }, kGone));
  CHECK(kvmd.SettledFds() <= left + 4 * static_cast<int>(kSlabs));
}

TEST_CASE("Host cache: after a restart of kvmd it fills again with blocks that workers still have", "[fault]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  publisher.Publish("a:16", 0);
  {
    RegistryProbe probe(kvmd.socket());
    REQUIRE(StoredEventually(probe, 16) == 16);
  }
  kvmd.Kill();
  kvmd.Start();
  publisher.WaitConnected();
  RegistryProbe probe(kvmd.socket());
  REQUIRE(StoredEventually(probe, 16) == 16);
  publisher.Kill();
  REQUIRE(test::Eventually([&] { return probe.CountSlots() == 16; }));  // the cache's alone
  const auto reader = test::Worker::Start({.socket = kvmd.socket(), .name = "reader"});
  KVM_REQUIRE_OK(reader);
  const test::ImportCheck import = (*reader)->FindAndImport("a:16", 0);
  CHECK(import.valid == 16);
  CHECK(import.wrong == 0);
}
