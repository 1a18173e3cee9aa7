// Whatever workers and kvmd go through, descriptors, mappings, index slots, rows and what the
// service manager keeps return to where they were: each round of everything ends with the numbers
// that the first one ended with.
#include <chrono>
#include <fstream>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/supervisor.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::RemoteWorker;
using test::Supervisor;
using test::Worker;

constexpr std::chrono::seconds kSoon{10};

struct Held {
  int kvmd_fds = 0, own_fds = 0;
  std::size_t kvmd_mappings = 0, own_mappings = 0;  // of memfds
  std::size_t stored = 0, slots = 0, rows = 0;
  std::uint64_t leases = 0, leased_bytes = 0, quota_fds = 0;
  bool operator==(const Held&) const = default;
};

std::size_t MemfdMappings(const std::string& process) {
  std::ifstream maps("/proc/" + process + "/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("/memfd:") != std::string::npos;
  return count;
}

Held Look(const Supervisor& kvmd, test::RegistryProbe& probe) {
  const kvmwire::StatusReply status = probe.Status();
  const kvmwire::DomainStatus& domain = status.domains(0);
  return {test::OpenFds(kvmd.pid()),
          test::OpenFds(),
          MemfdMappings(std::to_string(kvmd.pid())),
          MemfdMappings("self"),
          kvmd.Stored().size(),
          probe.CountSlots(),
          probe.RegionRows(),
          domain.leases(),
          domain.leased_bytes(),
          domain.fds()};
}

// A lease on what is found of `prompt`, once its owner's end is known.
Lease LeaseEventually(Worker& reader, const std::string& prompt) {
  Lease out;
  REQUIRE(test::Eventually([&] {
    Result<Lease> lease = reader.client().AcquireLease(reader.Find(prompt), std::chrono::seconds(120), After(kSoon));
    if (lease) out = std::move(*lease);
    return out.valid();
  }));
  return out;
}

// Publish, import, death, holding, adoption, rewriting, reclaiming, unregistering, and kvmd's death
// in between.
void Round(Supervisor& kvmd, Worker& reader) {
  {
    RemoteWorker victim({.socket = kvmd.socket(), .name = "pool"});
    victim.Publish("a:30", 0);
    REQUIRE(test::Eventually([&] { return reader.Find("a:30").size() == 30; }));
    CHECK(reader.FindAndImport("a:30", 0).valid == 30);
  }
  const Lease adopted = LeaseEventually(reader, "a:30");
  const auto adopter = test::StartWorker({.socket = kvmd.socket(), .name = "pool", .adopt = true});
  CHECK(adopter->adopted().size() == 30);
  CHECK(test::Eventually([&] { return !adopted.valid(); }));
  adopter->Publish("b:10", 5);
  KVM_REQUIRE_OK(adopter->Flush());
  kvmd.Kill();
  kvmd.Start();
  KVM_REQUIRE_OK(adopter->client().WaitConnected(After(kSoon)));
  KVM_REQUIRE_OK(reader.client().WaitConnected(After(kSoon)));
  KVM_REQUIRE_OK(adopter->Flush());
  adopter->DropClient();
  RemoteWorker({.socket = kvmd.socket(), .name = "lost"}).Publish("c:20", 0);
  REQUIRE(test::Eventually([&] { return reader.Find("c:20").size() == 20; }));
  {
    const Lease held = LeaseEventually(reader, "c:20");
    const Result<ReclaimedMemory> none = reader.client().ReclaimOrphans({}, After(kSoon));
    KVM_REQUIRE_OK(none);
    CHECK(none->regions == 0);
    // Holders that die leave nothing.
    RemoteWorker holder({.socket = kvmd.socket(), .name = "holder"});
    CHECK(holder.AcquireLease("c:20", std::chrono::seconds(120)) == 20);
  }
  // The worker's that was lost, and the holder's own.
  std::size_t regions = 0;
  REQUIRE(test::Eventually([&] {
    const Result<ReclaimedMemory> reclaimed = reader.client().ReclaimOrphans({}, After(kSoon));
    regions += reclaimed ? reclaimed->regions : 0;
    return regions == 2;
  }));
}

}  // namespace

TEST_CASE("Memory honesty: every round of work ends with the same memory as the first one", "[fault]") {
  Supervisor kvmd;
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  Held first;
  for (int round = 0; round < 4; ++round) {
    Round(kvmd, *reader);
    test::RegistryProbe probe(kvmd.socket());
    if (round == 0) {
      // The previous registry is unmapped after a while, and so are its mappings.
      test::SleepMs(11'000);
      first = Look(kvmd, probe);
      CHECK(first.slots == 0);
      CHECK(first.rows == 1);  // the reader's
      CHECK(first.leases == 0);
      CHECK(first.leased_bytes == 0);
      continue;
    }
    const bool same = test::Eventually([&] { return Look(kvmd, probe) == first; }, std::chrono::seconds(20));
    const Held now = Look(kvmd, probe);
    INFO("round " << round << ": kvmd's descriptors " << now.kvmd_fds << " of " << first.kvmd_fds << ", its mappings " << now.kvmd_mappings
                  << " of " << first.kvmd_mappings << "; own descriptors " << now.own_fds << " of " << first.own_fds << ", mappings "
                  << now.own_mappings << " of " << first.own_mappings << "; stored " << now.stored << " of " << first.stored << ", slots "
                  << now.slots << ", rows " << now.rows << ", leases " << now.leases << ", held bytes " << now.leased_bytes
                  << ", descriptors in the quota " << now.quota_fds << " of " << first.quota_fds);
    CHECK(same);
  }
}

TEST_CASE("Memory honesty: rounds of leases, evictions and leaving clients end with the same memory of the host cache", "[fault]") {
  constexpr std::uint64_t kSlabs = 4, kSlots = 16, kBlock = 4096;
  Supervisor kvmd({"--orphan-ttl-s", "0", "--host-cache", std::to_string(kSlabs * kSlots * kBlock), "--host-cache-slab",
                   std::to_string(kSlots * kBlock)});
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  test::RegistryProbe probe(kvmd.socket());
  const auto cache = [&] { return probe.Status().domains(0).host_cache(); };
  Held first;
  for (int round = 0; round < 5; ++round) {
    INFO("round " << round);
    const std::string stream = "r" + std::to_string(round) + "-";
    {
      RemoteWorker holder({.socket = kvmd.socket(), .name = "holder"});
      RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher", .blocks = 256});
      publisher.Publish(stream + "held:8", 0);
      REQUIRE(test::Eventually([&] { return cache().stored() == static_cast<std::uint64_t>(round) * 136 + 8; }));
      CHECK(holder.AcquireLease(stream + "held:8", std::chrono::seconds(120)) == 8);
      for (std::uint32_t prompt = 0; prompt < 8; ++prompt) {
        publisher.Publish(stream + std::to_string(prompt) + ":16", 16 * (1 + prompt));
        REQUIRE(test::Eventually([&] { return cache().stored() == static_cast<std::uint64_t>(round) * 136 + 8 + 16 * (prompt + 1); }));
      }
      publisher.Kill();
      const Result<Lease> own = reader->client().AcquireLease(reader->Find(stream + "held:8"), std::chrono::seconds(120), After(kSoon));
      KVM_REQUIRE_OK(own);
      CHECK(reader->FindAndImport(stream + "held:8", 0).valid == 8);
    }
    const auto now = [&] {
      Held held = Look(kvmd, probe);
      held.stored = 0;  // kvmd stores what it likes of it
      return held;
    };
    const auto settled = [&] { return cache().blocks() == kSlabs * kSlots && now().leases == 0 && probe.Status().clients() == 2; };
    REQUIRE(test::Eventually(settled));
    CHECK(cache().slabs() == kSlabs);
    CHECK(cache().bytes() == kSlabs * kSlots * kBlock);
    // The first rounds' regions are unmapped by the reader's threads in their own time.
    if (round == 0) {
      test::SleepMs(500);
      first = now();
      CHECK(first.slots == kSlabs * kSlots);
      CHECK(first.leased_bytes == 0);
      continue;
    }
    const bool same = test::Eventually([&] { return now() == first; }, std::chrono::seconds(20));
    const Held at_end = now();
    INFO("kvmd's descriptors " << at_end.kvmd_fds << " of " << first.kvmd_fds << ", its mappings " << at_end.kvmd_mappings << " of "
                               << first.kvmd_mappings << "; own descriptors " << at_end.own_fds << " of " << first.own_fds << ", mappings "
                               << at_end.own_mappings << " of " << first.own_mappings << "; slots " << at_end.slots << ", rows "
                               << at_end.rows << " of " << first.rows << ", descriptors in the quota " << at_end.quota_fds << " of "
                               << first.quota_fds);
    CHECK(same);
  }
}
