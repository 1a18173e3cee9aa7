// Whatever workers and kvmd go through, descriptors, mappings, index slots, rows and what the service manager keeps
// return to where they were: each round of everything ends with the numbers that the first one ended with.
#include <chrono>
#include <fstream>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd_process.h"
#include "tests/support/open_fds.h"
#include "tests/support/registry_probe.h"
#include "tests/support/remote_worker.h"
#include "tests/support/supervisor.h"
#include "tests/support/worker.h"

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
  bool operator==(const Held&) const = default;
};

std::size_t MemfdMappings(const std::string& process) {
  std::ifstream maps("/proc/" + process + "/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("/memfd:") != std::string::npos;
  return count;
}

Held Look(const Supervisor& kvmd, test::RegistryProbe& probe) {
  return {test::OpenFds(kvmd.pid()), test::OpenFds(),      MemfdMappings(std::to_string(kvmd.pid())),
          MemfdMappings("self"),     kvmd.Stored().size(), probe.CountSlots(),
          probe.RegionRows()};
}

// Publish, import, death, adoption, rewriting, reclaiming, unregistering, and kvmd's death in between.
void Round(Supervisor& kvmd, Worker& reader) {
  {
    RemoteWorker victim({.socket = kvmd.socket(), .name = "pool"});
    victim.Publish("a:30", 0);
    REQUIRE(test::Eventually([&] { return reader.Find("a:30").size() == 30; }));
    CHECK(reader.FindAndImport("a:30", 0).valid == 30);
  }
  const auto heir = test::StartWorker({.socket = kvmd.socket(), .name = "pool", .adopt = true});
  CHECK(heir->adopted().size() == 30);
  heir->Publish("b:10", 5);
  KVM_REQUIRE_OK(heir->Flush());
  kvmd.Kill();
  kvmd.Start();
  KVM_REQUIRE_OK(heir->client().WaitConnected(After(kSoon)));
  KVM_REQUIRE_OK(reader.client().WaitConnected(After(kSoon)));
  KVM_REQUIRE_OK(heir->Flush());
  heir->DropClient();
  RemoteWorker({.socket = kvmd.socket(), .name = "lost"}).Publish("c:20", 0);
  REQUIRE(test::Eventually([&] {
    const Result<ReclaimedMemory> reclaimed = reader.client().ReclaimOrphans({}, After(kSoon));
    return reclaimed && reclaimed->regions == 1;
  }));
}

}  // namespace

TEST_CASE("Memory honesty: every round ends with what the first one ended with", "[fault]") {
  Supervisor kvmd;
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  Held first;
  for (int round = 0; round < 4; ++round) {
    Round(kvmd, *reader);
    test::RegistryProbe probe(kvmd.socket());
    if (round == 0) {
      // The registry of the epoch before is let go of after a while, and so is what came with it.
      test::SleepMs(11'000);
      first = Look(kvmd, probe);
      CHECK(first.slots == 0);
      CHECK(first.rows == 1);  // the reader's
      continue;
    }
    const bool same = test::Eventually([&] { return Look(kvmd, probe) == first; }, std::chrono::seconds(20));
    const Held now = Look(kvmd, probe);
    INFO("round " << round << ": kvmd's descriptors " << now.kvmd_fds << " of " << first.kvmd_fds << ", its mappings " << now.kvmd_mappings
                  << " of " << first.kvmd_mappings << "; own descriptors " << now.own_fds << " of " << first.own_fds << ", mappings "
                  << now.own_mappings << " of " << first.own_mappings << "; stored " << now.stored << " of " << first.stored << ", slots "
                  << now.slots << ", rows " << now.rows);
    CHECK(same);
  }
}
