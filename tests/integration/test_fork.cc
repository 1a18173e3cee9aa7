// A process that forks: the child has neither its parent's memory nor its parent's voice, and can
// do all of it anew.
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <string>
#include <vector>

#include "proto/base/sanitizers.h"
#include "tests/catch.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/process/fork.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::KvmdProcess;
using test::Worker;

Deadline Soon() { return After(std::chrono::seconds(5)); }

template <class T>
bool IsParents(const T& result) {
  return !result && result.error().code == Errc::kUnsupported && result.error().message.find("forked") != std::string::npos;
}

// The number of the first call that does not say whose the worker is; 0: all do.
int CallsOfAChild(Worker& worker, const Match& match, Lease& lease, ImportTicket& ticket) {
  Client& client = worker.client();
  Region& region = worker.region();
  const std::vector<std::uint32_t> blocks{40, 41, 42, 43};
  const std::vector<PublishRequest> requests{{{1, 1}, {1, 1}, 0, {0, 1}}};
  if (client.state() != ConnectionState::kClosed) return 1;
  if (!IsParents(client.WaitConnected(Soon()))) return 2;
  if (client.client_id() != 0 || !client.domain().empty() || client.last_error().code != Errc::kUnsupported) return 3;
  if (!IsParents(client.DeclareModel(test::SmallSpec(), Soon()))) return 4;
  RegionOptions options;
  options.name = "childs";
  options.geometry = Geometry::Contiguous(4, 4096);
  if (!IsParents(client.AllocateRegion(worker.model(), options, Soon()))) return 5;
  if (!IsParents(client.AdoptRegion(worker.model(), options, Soon()))) return 6;
  if (!IsParents(client.RegisterRegion(worker.model(), options, {}, Soon()))) return 7;
  if (!IsParents(client.ReclaimOrphans({}, Soon()))) return 8;
  if (!IsParents(client.AcquireLease(match, std::chrono::seconds(1), Soon()))) return 9;
  if (!IsParents(client.Import(match, region, blocks))) return 10;
  if (!client.Find(worker.Keys("a:4")).empty() || !client.NearMisses(worker.model()).empty()) return 11;
  if (!client.UnmappedRegions().empty() || client.Stats().finds != 0) return 12;
  if (region.SegmentData() != nullptr || region.BlockData(0) != nullptr || region.CurrentGeneration(0) != 0) return 13;
  if (region.BeginWrite(0).generation != 0) return 14;
  region.Retract(blocks);
  if (region.Publish(requests).lost_race != 1) return 15;
  if (!IsParents(region.PublishOnStream(requests, StreamHandle{}))) return 16;
  if (region.Offload(blocks) != 0 || !IsParents(region.OffloadBeforeReuse(blocks, Soon()))) return 17;
  std::byte bytes[4] = {};
  if (!IsParents(region.WriteBytes(0, 0, bytes)) || !IsParents(region.ReadBytes(0, 0, bytes))) return 18;
  if (!IsParents(region.Flush(Soon())) || !IsParents(region.Unregister(Soon()))) return 19;
  if (lease.blocks() != 0 || lease.left().count() != 0 || lease.reason().code != Errc::kUnsupported) return 20;
  if (!IsParents(lease.Renew(std::chrono::seconds(9), Soon()))) return 21;
  lease.Release();
  if (!IsParents(ticket.Wait(Soon())) || !ticket.Done() || ticket.event() != nullptr) return 22;
  if (ticket.result().valid != 0 || ticket.result().failed.size() != 4) return 23;
  return 0;
}

}  // namespace

TEST_CASE("Fork: a child's calls fail since the client is its parent's, and the child's end does not change the parent's state",
          "[integration]") {
  KvmdProcess kvmd({"--host-cache", "16M"});
  test::RemoteWorker other({.socket = kvmd.socket(), .name = "other"});
  auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker"});
  worker->Publish("a:4", 0);
  other.Publish("b:4", 0);
  KVM_REQUIRE_OK(worker->Flush());
  test::RegistryProbe probe(kvmd.socket());
  REQUIRE(test::StoredEventually(probe, 8) == 8);
  REQUIRE(test::Eventually([&] { return worker->Find("b:4").size() == 4; }));
  const Match match = worker->Find("b:4");
  Result<Lease> lease = worker->client().AcquireLease(match, std::chrono::seconds(60), Soon());
  KVM_REQUIRE_OK(lease);
  const std::vector<std::uint32_t> blocks{30, 31, 32, 33};
  Result<ImportTicket> ticket = worker->client().Import(match, worker->region(), blocks);
  KVM_REQUIRE_OK(ticket);
  std::vector<std::uint64_t> generations;
  for (std::uint32_t block = 0; block < 64; ++block) generations.push_back(worker->region().CurrentGeneration(block));

  const test::ChildEnd end = test::RunInChild([&] {
    if (const int wrong = CallsOfAChild(*worker, match, *lease, *ticket); wrong != 0) return wrong;
    *ticket = ImportTicket();
    *lease = Lease();
    worker.reset();  // region and client
    return 0;
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
  for (std::uint32_t block = 0; block < 64; ++block) {
    INFO(block);
    CHECK(worker->region().CurrentGeneration(block) == generations[block]);
  }
  KVM_REQUIRE_OK(ticket->Wait(Soon()));
  CHECK(ticket->result().valid == 4);
  CHECK(lease->blocks() == 4);
  CHECK(other.Find("a:4") == 4);
  CHECK(other.Import("a:4", 20).valid == 4);
  worker->Publish("c:4", 10);
  KVM_REQUIRE_OK(worker->Flush());
  CHECK(test::Eventually([&] { return other.Find("c:4") == 4; }));
}

TEST_CASE("Fork: a child can't write its parent's blocks through any pointer that it inherited", "[integration]") {
  KvmdProcess kvmd;
  for (const bool granted : {true, false}) {
    const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker", .outlives_owner = granted});
    worker->Publish("a:4", 0);
    std::byte* const block = worker->region().BlockData(0);
    const std::byte before = *block;
    const test::ChildEnd end = test::RunInChild([&] {
      *const_cast<volatile std::byte*>(block) = std::byte{0x5A};
      return 0;
    });
    CHECK(end.signal == SIGSEGV);
    CHECK(*block == before);
  }
}

TEST_CASE("Fork: a child that connects anew has a client like any other, beside its parent's", "[integration]") {
#if defined(KVM_THREAD_SANITIZER)
  KVM_SKIP("ThreadSanitizer allows no threads in a child of a process that has threads");
#endif
  KvmdProcess kvmd;
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker"});
  worker->Publish("a:4", 0);
  KVM_REQUIRE_OK(worker->Flush());
  const test::ChildEnd end = test::RunInChild([&] {
    const Result<std::unique_ptr<Worker>> own = Worker::Start({.socket = kvmd.socket(), .name = "child"});
    if (!own) return 1;
    if (!test::Eventually([&] { return (*own)->Find("a:4").size() == 4; }, std::chrono::seconds(5))) return 2;
    const test::ImportCheck import = (*own)->FindAndImport("a:4", 20);
    if (import.valid != 4 || import.wrong != 0) return 3;
    if ((*own)->Publish("b:4", 0).readable != 4 || !(*own)->Flush(std::chrono::seconds(5))) return 4;
    if ((*own)->region().SegmentData() == nullptr || worker->region().SegmentData() != nullptr) return 5;
    return 0;
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
  CHECK(worker->FindAndImport("a:4", 30).valid == 4);
}

TEST_CASE("Fork: no descriptor of shared memory goes to a program that a worker starts", "[integration]") {
  KvmdProcess kvmd({"--host-cache", "16M"});
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker"}),
             sealed = test::StartWorker({.socket = kvmd.socket(), .name = "sealed", .outlives_owner = false});
  worker->Publish("a:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  test::RegistryProbe probe(kvmd.socket());
  REQUIRE(test::StoredEventually(probe, 8) == 8);  // so a slab is mapped
  std::size_t seen = 0;
  DIR* const directory = ::opendir("/proc/self/fd");
  REQUIRE(directory != nullptr);
  while (const dirent* entry = ::readdir(directory)) {
    char target[128] = {};
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (::readlink(path.c_str(), target, sizeof(target) - 1) <= 0 || std::strncmp(target, "/memfd:kvm", 10) != 0) continue;
    ++seen;
    INFO(target);
    CHECK((::fcntl(std::atoi(entry->d_name), F_GETFD) & FD_CLOEXEC) != 0);
  }
  ::closedir(directory);
  CHECK(seen >= 5);  // two tables, two pools, a slab
}
