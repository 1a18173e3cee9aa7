// kvmd under a service manager that keeps its descriptors: it is killed at any moment, and what it
// held is there again, also of workers that died meanwhile.
#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/worker/busy_worker.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::RemoteWorker;
using test::Supervisor;
using test::Worker;

constexpr std::chrono::seconds kSoon{10};

std::size_t Count(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

void ExpectOnlyRegistries(const Supervisor& kvmd, std::size_t registries) {
  const auto only = [&] {
    const std::vector<std::string> stored = kvmd.Stored();
    return stored.size() == registries &&
           std::all_of(stored.begin(), stored.end(), [](const std::string& name) { return name.starts_with("kept.registry."); });
  };
  const bool is = test::Eventually(only, kSoon);
  for (const std::string& name : kvmd.Stored()) UNSCOPED_INFO("stored: " << name);
  CHECK(is);
}

}  // namespace

TEST_CASE("Restart: blocks of a worker that died meanwhile are found again", "[fault]") {
  Supervisor kvmd;
  auto victim = std::make_unique<RemoteWorker>(test::WorkerOptions{.socket = kvmd.socket(), .name = "pool"});
  victim->Publish("a:30", 0);
  victim->BeginWrites(29, 1);
  SECTION("killed") { kvmd.Kill(); }
  SECTION("stopped") { CHECK(kvmd.Stop() == 0); }
  victim.reset();
  kvmd.Start();
  const auto newcomer = test::StartWorker({.socket = kvmd.socket(), .name = "newcomer"});
  REQUIRE(test::Eventually([&] { return newcomer->Find("a:30").size() == 29; }));
  const test::ImportCheck import = newcomer->FindAndImport("a:30", 0);
  CHECK(import.valid == 29);
  CHECK(import.wrong == 0);
  const auto adopter = test::StartWorker({.socket = kvmd.socket(), .name = "pool", .adopt = true});
  CHECK(adopter->adopted().size() == 29);
  // And once more, with the new owner.
  kvmd.Kill();
  kvmd.Start();
  KVM_REQUIRE_OK(adopter->client().WaitConnected(After(kSoon)));
  adopter->Publish("b:4", 40);
  KVM_REQUIRE_OK(adopter->Flush());
  const auto late = test::StartWorker({.socket = kvmd.socket(), .name = "late"});
  CHECK(test::Eventually([&] { return late->Find("a:30").size() == 29 && late->Find("b:4").size() == 4; }));
}

TEST_CASE("Restart: an owner that survives gets its region back in the same row, and importers use it meanwhile", "[fault]") {
  Supervisor kvmd;
  RemoteWorker owner({.socket = kvmd.socket(), .name = "pool"});
  owner.Publish("a:30", 0);
  owner.process().Signal(SIGSTOP);
  kvmd.Kill();
  kvmd.Start();
  const auto newcomer = test::StartWorker({.socket = kvmd.socket(), .name = "newcomer"});
  CHECK(test::Eventually([&] { return newcomer->Find("a:30").size() == 30; }));
  CHECK(newcomer->FindAndImport("a:30", 0).valid == 30);
  // Meanwhile no other process can adopt it.
  RegionOptions options;
  options.name = "pool";
  options.geometry = Geometry::Contiguous(64, 4096);
  KVM_CHECK_ERROR(newcomer->client().AdoptRegion(newcomer->model(), options, After(std::chrono::milliseconds(50))), Errc::kUnavailable,
                  "has not ended");
  const Match before = newcomer->Find("a:30");
  const std::size_t row = before[0].region;
  owner.process().Signal(SIGCONT);
  owner.WaitConnected();
  owner.Publish("b:4", 40);
  CHECK(test::Eventually([&] { return newcomer->Find("b:4").size() == 4; }));
  CHECK(newcomer->Find("a:30")[0].region == row);
  CHECK(Count(kvmd.Log(), "event=region_resumed") == 1);
  owner.BeginWrites(7, 1);
  CHECK(newcomer->Import(before, newcomer->Keys("a:30"), 0).valid == 7);
}

TEST_CASE("Restart: memory that must not outlive its owner is freed if the owner has died meanwhile", "[fault]") {
  Supervisor kvmd;
  RemoteWorker victim({.socket = kvmd.socket(), .name = "kept"});
  const auto mortal = test::StartWorker({.socket = kvmd.socket(), .name = "mortal", .outlives_owner = false});
  victim.Publish("a:5", 0);
  mortal->Publish("b:5", 0);
  KVM_REQUIRE_OK(mortal->Flush());
  kvmd.Kill();
  kvmd.Start();
  KVM_REQUIRE_OK(mortal->client().WaitConnected(After(kSoon)));
  test::RegistryProbe probe(kvmd.socket());
  CHECK(test::Eventually([&] { return probe.live_entries() == 10; }));
  CHECK(test::Eventually([&] { return probe.Status().domains(0).orphans() == 0; }));
}

TEST_CASE("Restart: a kvmd that is killed while it restores still loses no block", "[fault]") {
  Supervisor kvmd({"--max-entries", "200000"});
  std::vector<std::unique_ptr<RemoteWorker>> victims;
  for (int i = 0; i < 3; ++i) {
    victims.push_back(std::make_unique<RemoteWorker>(test::WorkerOptions{.socket = kvmd.socket(), .name = "pool-" + std::to_string(i)}));
    victims.back()->Publish("s" + std::to_string(i) + ":60", 0);
  }
  kvmd.Kill();
  victims.clear();
  test::Random random(3);
  for (int round = 0; round < 20; ++round) {
    kvmd.StartUnwatched();
    test::SleepMs(static_cast<int>(random.Below(25)));
    kvmd.Kill();
  }
  kvmd.Start();
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  for (int i = 0; i < 3; ++i) {
    const std::string prompt = "s" + std::to_string(i) + ":60";
    CHECK(test::Eventually([&] { return reader->Find(prompt).size() == 60; }));
    const test::ImportCheck import = reader->FindAndImport(prompt, 0);
    CHECK(import.valid == 60);
    CHECK(import.wrong == 0);
  }
  CHECK(reader->client().ReclaimOrphans({}, After(kSoon))->regions == 3);
  reader->DropRegion();
  ExpectOnlyRegistries(kvmd, 1);
}

TEST_CASE("Restart: restarts under load, with workers that die too, give no wrong byte and leave no region", "[fault]") {
  Supervisor kvmd({"--orphan-ttl-s", "2"});
  const auto steady = test::StartWorker({.socket = kvmd.socket(), .name = "steady"});
  steady->Publish("steady:20", 0);
  KVM_REQUIRE_OK(steady->Flush());
  test::BusyCrew crew(kvmd.socket(), 500, 3, test::BusyCrew::Successor::kAdopter);
  test::Random random(5);
  for (int restart = 0; restart < 8; ++restart) {
    test::SleepMs(static_cast<int>(random.Between(50, 250)));
    const auto i = static_cast<std::size_t>(random.Below(3));
    const bool worker_first = random.OneIn(2);
    if (!worker_first) kvmd.Kill();
    crew.Kill(i);
    if (worker_first) kvmd.Kill();
    test::SleepMs(static_cast<int>(random.Below(100)));
    crew.Replace(i);
    kvmd.Start();
    CHECK(steady->Find("steady:20").size() == 20);
  }
  KVM_REQUIRE_OK(steady->client().WaitConnected(After(kSoon)));
  const auto late = test::StartWorker({.socket = kvmd.socket(), .name = "late"});
  CHECK(test::Eventually([&] { return late->Find("steady:20").size() == 20; }));
  CHECK(late->FindAndImport("steady:20", 0).wrong == 0);
  CHECK(crew.EndWell());
  steady->DropClient();
  late->DropClient();
  test::RegistryProbe probe(kvmd.socket());
  CHECK(test::Eventually([&] { return probe.RegionRows() == 0 && probe.CountSlots() == 0; }, kSoon));
  ExpectOnlyRegistries(kvmd, 1);
}

TEST_CASE("Restart: descriptors in the store that are of no use are removed, and the rest is used", "[fault]") {
  Supervisor kvmd;
  RemoteWorker victim({.socket = kvmd.socket(), .name = "pool"});
  victim.Publish("a:5", 0);
  kvmd.Kill();
  victim.Kill();
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (const char* name : {"kept.", "kept.x", "kept.file.0123456789abcdef", "kept.region.0123456789abcdef.00000001", "kept.region.short",
                           "kept.registry.beef"}) {
    kvmd.Put(name, null.get());
  }
  kvmd.Start();
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  CHECK(test::Eventually([&] { return reader->Find("a:5").size() == 5; }));
  CHECK(kvmd.Log().find("registry_not_restored") != std::string::npos);
  CHECK(test::Eventually([&] {
    const std::vector<std::string> stored = kvmd.Stored();
    return std::none_of(stored.begin(), stored.end(), [](const std::string& name) {
      return name.find("0123456789abcdef") != std::string::npos || name == "kept." || name == "kept.x" || name == "kept.region.short";
    });
  }));
}

TEST_CASE("Restart: several regions of one worker, restored twice, can still be adopted", "[fault]") {
  Supervisor kvmd;
  auto victim = std::make_unique<RemoteWorker>(test::WorkerOptions{.socket = kvmd.socket(), .name = "pool"});
  victim->Publish("a:5", 0);
  victim->Allocate("second");
  for (int round = 0; round < 2; ++round) {
    kvmd.Kill();
    if (round == 1) victim.reset();
    kvmd.Start();
    test::RegistryProbe probe(kvmd.socket());
    if (round == 0) victim->WaitConnected();
    REQUIRE(test::Eventually([&] { return Count(kvmd.Log(), "event=registry_restored") == static_cast<std::size_t>(round) + 1; }));
  }
  const auto adopter = test::StartWorker({.socket = kvmd.socket(), .name = "pool", .adopt = true});
  CHECK(adopter->adopted().size() == 5);
  RegionOptions options;
  options.name = "second";
  options.geometry = Geometry::Contiguous(64, 4096);
  KVM_REQUIRE_OK(adopter->client().AdoptRegion(adopter->model(), options, After(kSoon)));
}

TEST_CASE("Restart: the service manager hears the watchdog and reloads", "[fault]") {
  const test::TempDir dir;
  const Supervisor kvmd({}, {"WATCHDOG_USEC=300000"});
  CHECK(test::Eventually([&] { return kvmd.Heard("WATCHDOG=1") >= 3; }));
  const std::size_t ready = kvmd.Heard("READY=1");
  kvmd.Signal(SIGHUP);
  CHECK(test::Eventually([&] { return kvmd.Heard("RELOADING=1") == 1 && kvmd.Heard("READY=1") == ready + 1; }));
  // A kvmd whose loop stands still says nothing.
  kvmd.Signal(SIGSTOP);
  test::SleepMs(50);
  const std::size_t fed = kvmd.Heard("WATCHDOG=1");
  test::SleepMs(500);
  CHECK(kvmd.Heard("WATCHDOG=1") == fed);
  kvmd.Signal(SIGCONT);
  CHECK(test::Eventually([&] { return kvmd.Heard("WATCHDOG=1") > fed; }));
}
