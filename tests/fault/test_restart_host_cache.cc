// kvmd's restart with a host cache, under a service manager that keeps its descriptors: what it
// held is there again, and is used on.
#include <algorithm>
#include <chrono>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/worker/busy_worker.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::HostCacheOf;
using test::RegistryProbe;
using test::RemoteWorker;
using test::StoredEventually;
using test::Supervisor;

constexpr std::chrono::seconds kSoon{10};
constexpr std::uint64_t kBlock = 4096, kSlots = 64, kSlab = kSlots * kBlock;

std::vector<std::string> Options(std::uint64_t slabs) {
  return {"--orphan-ttl-s",       "0",   "--host-cache", std::to_string(slabs * kSlab), "--host-cache-slab", std::to_string(kSlab),
          "--offload-timeout-ms", "2000"};
}

test::ImportCheck Import(test::Worker& worker, const std::string& prompt, std::size_t blocks) {
  test::Eventually([&] { return worker.Find(prompt).size() >= blocks; }, kSoon);
  return worker.FindAndImport(prompt, 0);
}

std::size_t StoredRegions(const Supervisor& kvmd) {
  const std::vector<std::string> stored = kvmd.Stored();
  return static_cast<std::size_t>(
      std::count_if(stored.begin(), stored.end(), [](const std::string& name) { return name.starts_with("kept.region."); }));
}

}  // namespace

TEST_CASE("Host cache restart: blocks of a dead worker are imported from it, and its memory is used on", "[fault]") {
  Supervisor kvmd(Options(4));
  pid_t publisher_pid = 0;
  {
    RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
    publisher_pid = publisher.pid();
    publisher.Publish("a:30", 0);
    RegistryProbe probe(kvmd.socket());
    REQUIRE(StoredEventually(probe, 30) == 30);
    SECTION("the worker dies first") {
      publisher.Kill();
      REQUIRE(test::Eventually([&] { return probe.RegionRows(publisher.pid()) == 0; }));
      kvmd.Kill();
    }
    SECTION("kvmd dies first") {
      kvmd.Kill();
      publisher.Kill();
    }
    SECTION("kvmd is stopped") {
      publisher.Kill();
      CHECK(kvmd.Stop() == 0);
    }
  }
  for (int restart = 0; restart < 2; ++restart) {
    kvmd.Start();
    RegistryProbe probe(kvmd.socket());
    CHECK(StoredEventually(probe, 30) == 30);
    CHECK(HostCacheOf(probe).bytes() == kSlab);
    REQUIRE(test::Eventually([&] { return probe.RegionRows(publisher_pid) == 0; }));
    const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
    const test::ImportCheck import = Import(*reader, "a:30", 30);
    CHECK(import.valid == 30);
    CHECK(import.wrong == 0);
    CHECK(reader->client().Stats().blocks_from_host_cache == 30);
    if (restart == 0) kvmd.Kill();
  }
  // The next worker of this user goes on in it.
  RegistryProbe probe(kvmd.socket());
  RemoteWorker next({.socket = kvmd.socket(), .name = "next"});
  next.Publish("b:20", 0);
  CHECK(StoredEventually(probe, 50) == 50);
  CHECK(HostCacheOf(probe).bytes() == kSlab);
  next.Kill();
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "late"});
  CHECK(Import(*reader, "b:20", 20).valid == 20);
  CHECK(Import(*reader, "a:30", 30).valid == 30);
  CHECK(StoredRegions(kvmd) >= 1);
}

TEST_CASE("Host cache restart: a worker that survives keeps writing its slab", "[fault]") {
  Supervisor kvmd(Options(4));
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  publisher.Publish("a:20", 0);
  {
    RegistryProbe probe(kvmd.socket());
    REQUIRE(StoredEventually(probe, 20) == 20);
  }
  for (int restart = 0; restart < 3; ++restart) {
    kvmd.Kill();
    kvmd.Start();
    publisher.WaitConnected();
    publisher.Publish(std::string(1, static_cast<char>('b' + restart)) + ":10", 20);
    RegistryProbe probe(kvmd.socket());
    const std::uint64_t expected = 30 + 10 * static_cast<std::uint64_t>(restart);
    CHECK(StoredEventually(probe, expected) == expected);
    CHECK(HostCacheOf(probe).bytes() == kSlab);
  }
  publisher.Kill();
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  for (const char* prompt : {"b:10", "c:10", "d:10"}) {
    const test::ImportCheck import = Import(*reader, prompt, 10);
    CHECK(import.valid == 10);
    CHECK(import.wrong == 0);
  }
  CHECK(Import(*reader, "a:20", 20).valid == 20);
}

TEST_CASE("Host cache restart: slabs that the new options do not allow are dropped", "[fault]") {
  Supervisor kvmd(Options(4));
  {
    RemoteWorker one({.socket = kvmd.socket(), .name = "one"}), other({.socket = kvmd.socket(), .name = "other"});
    one.Publish("a:30", 0);
    other.Publish("b:30", 0);
    RegistryProbe probe(kvmd.socket());
    REQUIRE(StoredEventually(probe, 60) == 60);
    REQUIRE(HostCacheOf(probe).slabs() == 2);
    one.Kill();
    other.Kill();
    REQUIRE(test::Eventually([&] { return probe.live_regions() == 2; }));
    REQUIRE(test::Eventually([&] { return StoredRegions(kvmd) == 2; }));
  }
  kvmd.Kill();
  std::size_t left = 0;
  SECTION("a smaller cache") {
    kvmd.Reconfigure(Options(1));
    left = 1;
  }
  SECTION("slabs of another size") {
    kvmd.Reconfigure({"--host-cache", std::to_string(4 * kSlab), "--host-cache-slab", std::to_string(kSlab / 2)});
  }
  SECTION("no cache") { kvmd.Reconfigure({}); }
  kvmd.Start();
  RegistryProbe probe(kvmd.socket());
  CHECK(test::Eventually([&] { return probe.live_regions() == left && StoredRegions(kvmd) == left; }));
  CHECK(test::Eventually([&] { return probe.live_entries() == 30 * left; }));
  // Files went with their slabs, and their writers' processes too: a slab left has two and a
  // manifest.
  CHECK(test::Eventually([&] { return kvmd.Stored().size() == 1 + 3 * left; }));
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  CHECK(reader->FindAndImport("a:30", 0).valid + reader->FindAndImport("b:30", 0).valid == 30 * left);
}

TEST_CASE("Host cache restart: under load that evicts, with workers that die too, no wrong byte and no slot lost", "[fault]") {
  constexpr std::uint64_t kSlabs = 8;
  Supervisor kvmd(Options(kSlabs));
  const std::uint64_t seed = 11;
  INFO("seed " << seed);
  test::Random random(seed);
  test::BusyCrew crew(kvmd.socket(), seed, 3);
  for (int kill = 0; kill < 10; ++kill) {
    test::SleepMs(static_cast<int>(random.Below(300)));
    kvmd.Kill();
    if (random.OneIn(2)) {
      const auto victim = static_cast<std::size_t>(random.Below(crew.size()));
      crew.Kill(victim);
      crew.Replace(victim);
    }
    kvmd.Start();
  }
  CHECK(crew.EndWell());
  RegistryProbe probe(kvmd.socket());
  CHECK(HostCacheOf(probe).bytes() <= kSlabs * kSlab);
  CHECK(test::Eventually([&] { return probe.live_regions() == HostCacheOf(probe).slabs(); }, kSoon));
  CHECK(test::Eventually([&] { return probe.live_entries() == HostCacheOf(probe).blocks(); }, kSoon));
  CHECK(test::Eventually([&] { return StoredRegions(kvmd) == HostCacheOf(probe).slabs(); }, kSoon));
  // Every slot can be used again, whatever it was when kvmd died. On a busy machine some blocks of
  // a round come after --offload-timeout-ms, and their slots stay free until the next.
  RemoteWorker last({.socket = kvmd.socket(), .name = "last", .blocks = 1024});
  std::uint64_t stored = 0;
  for (int round = 0; round < 10 && stored != kSlabs * kSlots; ++round) {
    last.Publish("fill" + std::to_string(round) + ":1024", 0);
    stored = StoredEventually(probe, kSlabs * kSlots);
  }
  CHECK(stored == kSlabs * kSlots);
}
