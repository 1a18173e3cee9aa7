// Leases when holders and kvmd die: nothing stays held, and nothing wrong is served.
#include <chrono>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using std::chrono::milliseconds;
using std::chrono::seconds;
using test::Eventually;
using test::HostCacheOf;
using test::KvmdProcess;
using test::RegistryProbe;
using test::RemoteWorker;
using test::StoredEventually;

constexpr std::uint64_t kBlock = 4096, kSlots = 64;
constexpr milliseconds kLong{120'000};

kvmwire::DomainStatus DomainOf(RegistryProbe& probe) { return probe.Status().domains(0); }

}  // namespace

TEST_CASE("Leases: blocks of a killed client's lease can be evicted again before the lease's time is over", "[fault]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", std::to_string(kSlots * kBlock), "--host-cache-policy", "lru"});
  RegistryProbe probe(kvmd.socket());
  const auto publisher = test::StartWorker({.socket = kvmd.socket(), .name = "publisher", .blocks = 128});
  RemoteWorker holder({.socket = kvmd.socket(), .name = "holder"});
  publisher->Publish("a:16", 0);
  KVM_REQUIRE_OK(publisher->Flush());
  REQUIRE(StoredEventually(probe, 16) == 16);
  REQUIRE(holder.AcquireLease("a:16", kLong) == 16);
  CHECK(DomainOf(probe).leases() == 1);
  holder.Kill();
  REQUIRE(Eventually([&] { return DomainOf(probe).leases() == 0; }));
  CHECK(DomainOf(probe).leased_blocks() == 0);
  CHECK(DomainOf(probe).leased_bytes() == 0);
  for (std::uint32_t prompt = 0; prompt < 8; ++prompt) {
    publisher->Publish("p" + std::to_string(prompt) + ":16", 32 + (prompt % 4) * 16);
    KVM_REQUIRE_OK(publisher->Flush());
    REQUIRE(Eventually([&] { return HostCacheOf(probe).stored() == 16 * (prompt + 2); }));
  }
  for (std::uint32_t block = 0; block < 16; ++block) publisher->region().Retract(block);
  CHECK(publisher->Find("a:16").empty());
}

TEST_CASE("Leases: kvmd's death ends them, the lease shows it, and imports are checked as always", "[fault]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  const auto publisher = test::StartWorker({.socket = kvmd.socket(), .name = "publisher"});
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  publisher->Publish("a:16", 0);
  KVM_REQUIRE_OK(publisher->Flush());
  {
    RegistryProbe probe(kvmd.socket());
    REQUIRE(StoredEventually(probe, 16) == 16);
  }
  const std::vector<BlockKey> keys = reader->Keys("a:16");
  const Match match = reader->Find("a:16");
  Result<Lease> lease = reader->client().AcquireLease(match, kLong, After(seconds(10)));
  KVM_REQUIRE_OK(lease);
  CHECK(lease->blocks() == 16);
  kvmd.Kill();
  REQUIRE(Eventually([&] { return !lease->valid(); }));
  CHECK(lease->reason().code == Errc::kUnavailable);
  CHECK(lease->left() == milliseconds(0));
  KVM_CHECK_ERROR(lease->Renew(kLong, After(seconds(1))), Errc::kUnavailable, "connection");
  // Half of the match is rewritten, now that no lease keeps it; the import reports that.
  for (std::uint32_t block = 8; block < 16; ++block) publisher->region().BeginWrite(block);
  const test::ImportCheck import = reader->Import(match, keys, 0);
  CHECK(import.wrong == 0);
  CHECK(import.valid >= 8);
  kvmd.Start();
  KVM_REQUIRE_OK(reader->client().WaitConnected(After(seconds(10))));
  KVM_REQUIRE_OK(publisher->client().WaitConnected(After(seconds(10))));
  // A match of the old registry names rows that may belong to other regions now.
  const Result<Lease> late = reader->client().AcquireLease(match, kLong, After(seconds(10)));
  if (late) {
    CHECK(late->blocks() <= 8);
  } else {
    CHECK((late.error().code == Errc::kStale || late.error().code == Errc::kUnsupported));
  }
  lease->Release();
  RegistryProbe probe(kvmd.socket());
  REQUIRE(StoredEventually(probe, 8) == 8);
  Result<Lease> again = MakeError(Errc::kUnavailable, "not tried");
  // The registry before is searched for 10 s more, and its match is longer: what the present one
  // has of it is held.
  REQUIRE(Eventually(
      [&] {
        again = reader->client().AcquireLease(reader->Find("a:16"), kLong, After(seconds(10)));
        return again.has_value();
      },
      seconds(5)));
  CHECK(again->blocks() == 8);
}

TEST_CASE("Leases: a match found before kvmd's restart can be leased after it, though its region has another row", "[fault]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  auto earlier = test::StartWorker({.socket = kvmd.socket(), .name = "earlier"});
  const auto publisher = test::StartWorker({.socket = kvmd.socket(), .name = "publisher"});
  publisher->Publish("a:16", 0);
  KVM_REQUIRE_OK(publisher->Flush());
  {
    RegistryProbe probe(kvmd.socket());
    REQUIRE(StoredEventually(probe, 16) == 16);
  }
  const Match match = publisher->Find("a:16");
  REQUIRE(match.size() == 16);
  REQUIRE(match[0].own);
  earlier.reset();  // its row is the publisher's next time
  kvmd.Kill();
  kvmd.Start();
  KVM_REQUIRE_OK(publisher->client().WaitConnected(After(seconds(10))));
  RegistryProbe probe(kvmd.socket());
  REQUIRE(StoredEventually(probe, 16) == 16);
  Result<Lease> lease = MakeError(Errc::kUnavailable, "not tried");
  REQUIRE(Eventually(
      [&] {
        lease = publisher->client().AcquireLease(match, kLong, After(seconds(10)));
        return lease.has_value();
      },
      seconds(5)));
  CHECK(lease->blocks() == 16);
  CHECK(DomainOf(probe).leases() == 1);
}

TEST_CASE("Leases: clients killed at any moment leave no block leased", "[fault]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  RegistryProbe probe(kvmd.socket());
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  publisher.Publish("a:32", 0);
  REQUIRE(StoredEventually(probe, 32) == 32);
  const int before = kvmd.SettledFds();
  for (int kill = 0; kill < 12; ++kill) {
    RemoteWorker holder({.socket = kvmd.socket(), .name = "holder-" + std::to_string(kill)});
    for (int i = 0; i <= kill % 4; ++i) {
      if (holder.Find("a:32") == 32) CHECK(holder.AcquireLease("a:32", kLong) == 32);
    }
    // Its answer is not waited for
    if (kill % 3 == 0) holder.process().WriteLine("hold a:32 120000");
    holder.Kill();
  }
  CHECK(Eventually([&] { return DomainOf(probe).leases() == 0; }));
  CHECK(DomainOf(probe).leased_blocks() == 0);
  CHECK(DomainOf(probe).leased_bytes() == 0);
  CHECK(Eventually([&] { return kvmd.SettledFds() <= before; }));
}
