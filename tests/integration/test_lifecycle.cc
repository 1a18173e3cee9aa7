// Regions and clients come and go: names, tables that fill up, unregistering with importers about
// (I7), replicas, start without kvmd, an end in good order.
#include <unistd.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ImportCheck;
using test::KvmdProcess;
using test::RemoteWorker;
using test::Worker;
using test::WorkerOptions;

RegionOptions SmallRegion(const std::string& name) {
  RegionOptions options;
  options.name = name;
  options.geometry = Geometry::Contiguous(4, 4096);
  return options;
}

const Deadline kSoon = After(std::chrono::hours(1));

}  // namespace

TEST_CASE("Lifecycle: unregistering succeeds while an importer has a match", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner"), reader = Start(kvmd, "reader");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  REQUIRE(test::Eventually([&] { return reader->Find("a:4").size() == 4; }));
  Match held = reader->Find("a:4");
  std::thread release([&] {
    test::SleepMs(200);
    held = Match();
  });
  const Status unregistered = owner->region().Unregister(After(std::chrono::seconds(20)));
  release.join();
  KVM_REQUIRE_OK(unregistered);
  CHECK(reader->Find("a:4").empty());
  CHECK(reader->client().Stats().mapped_regions == 0);
}

TEST_CASE("Lifecycle: a match does not keep its region, and a late import of it is a miss", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner"), reader = Start(kvmd, "reader");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  REQUIRE(test::Eventually([&] { return reader->Find("a:4").size() == 4; }));
  const std::vector<BlockKey> keys = reader->Keys("a:4");
  const Match held = reader->client().Find(keys);
  KVM_REQUIRE_OK(owner->region().Unregister(kSoon));
  owner->DropRegion();
  const test::ImportCheck late = reader->Import(held, keys, 10);
  CHECK(late.valid == 0);
  REQUIRE(late.failed.size() == 4);
  CHECK(late.failed[0].reason == ImportFailure::kUnmapped);
  CHECK(late.failed[1].reason == ImportFailure::kBehindFailed);
  CHECK(reader->client().Stats().imports_failed_unmapped == 1);
  CHECK(reader->Find("a:4").empty());
}

TEST_CASE("Lifecycle: no block of an unregistered region is found, and its row and entries are free again", "[integration]") {
  KvmdProcess kvmd;
  test::RegistryProbe probe(kvmd.socket());
  RemoteWorker owner({.socket = kvmd.socket(), .name = "owner"});
  RemoteWorker reader({.socket = kvmd.socket(), .name = "reader"});
  owner.Publish("a:32", 0);
  CHECK(probe.RegionRows() == 2);
  CHECK(probe.live_entries() == 32);
  owner.Unregister();
  CHECK(reader.Find("a:32") == 0);
  CHECK(test::Eventually([&] { return probe.RegionRows() == 1 && probe.live_entries() == 0 && probe.CountSlots() == 0; }));
}

TEST_CASE("Lifecycle: a region that goes out of scope unregisters", "[integration]") {
  KvmdProcess kvmd;
  test::RegistryProbe probe(kvmd.socket());
  const auto owner = Start(kvmd, "owner");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  CHECK(probe.live_regions() == 1);
  owner->DropRegion();
  CHECK(test::Eventually([&] { return probe.live_regions() == 0 && probe.live_entries() == 0; }));
}

TEST_CASE("Lifecycle: a region name is taken while its owner lives, and free afterwards", "[integration]") {
  KvmdProcess kvmd;
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second");
  auto taken = first->client().AllocateRegion(first->model(), SmallRegion("pool"), kSoon);
  KVM_REQUIRE_OK(taken);
  KVM_CHECK_ERROR(second->client().AllocateRegion(second->model(), SmallRegion("pool"), kSoon), Errc::kAlreadyExists, "pool");
  taken->reset();
  KVM_REQUIRE_OK(second->client().AllocateRegion(second->model(), SmallRegion("pool"), kSoon));
}

TEST_CASE("Lifecycle: wrong region options are refused before kvmd is asked", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker");
  const auto allocate = [&](RegionOptions options) { return worker->client().AllocateRegion(worker->model(), std::move(options), kSoon); };
  KVM_CHECK_ERROR(allocate(SmallRegion("")), Errc::kInvalidArgument, "name");
  KVM_CHECK_ERROR(allocate(SmallRegion(std::string(64, 'n'))), Errc::kInvalidArgument, "name");
  RegionOptions shard = SmallRegion("pool");
  shard.shard.tp_rank = 5;
  KVM_CHECK_ERROR(allocate(shard), Errc::kInvalidArgument, "tp_rank");
  RegionOptions overlap = SmallRegion("pool");
  overlap.geometry.parts.front().block_stride = 4095;
  KVM_CHECK_ERROR(allocate(overlap), Errc::kBadGeometry, "part 0");
  RegionOptions cut = SmallRegion("pool");
  cut.segment_bytes = {16383};
  KVM_CHECK_ERROR(allocate(cut), Errc::kBadGeometry, "ends at byte 16384");
}

TEST_CASE("Lifecycle: a region whose blocks differ in size from others of its model and shard is refused", "[integration]") {
  KvmdProcess kvmd;
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second", {.blocks = 0});
  RegionOptions larger = SmallRegion("larger");
  larger.geometry = Geometry::Contiguous(4, 8192);
  KVM_CHECK_ERROR(second->client().AllocateRegion(second->model(), larger, kSoon), Errc::kBadGeometry, "4096");
  KVM_REQUIRE_OK(second->client().AllocateRegion(second->model(), SmallRegion("same"), kSoon));
}

TEST_CASE("Lifecycle: a shard that is not one of the model's is refused, the field named", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker", {.blocks = 0});
  RegionOptions options = SmallRegion("pool");
  options.shard = {0, 2, 0, 1, 0};
  KVM_CHECK_ERROR(worker->client().AllocateRegion(worker->model(), options, kSoon), Errc::kModelMismatch, "tp_size");
}

TEST_CASE("Lifecycle: a full region table refuses new regions, and serves those that it has", "[integration]") {
  KvmdProcess kvmd({"--max-regions", "3"});
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second"), third = Start(kvmd, "third");
  const Result<std::unique_ptr<Worker>> fourth = Worker::Start({.socket = kvmd.socket(), .name = "fourth"});
  KVM_CHECK_ERROR(fourth, Errc::kResourceExhausted, "");
  first->Publish("a:4", 0);
  KVM_REQUIRE_OK(first->Flush());
  REQUIRE(test::Eventually([&] { return second->Find("a:4").size() == 4; }));
  CHECK(second->FindAndImport("a:4", 0).valid == 4);
  third->DropClient();
  CHECK(test::Eventually([&] { return static_cast<bool>(Worker::Start({.socket = kvmd.socket(), .name = "fourth"})); }));
}

TEST_CASE("Lifecycle: a full model table refuses the next model, the limit named", "[integration]") {
  KvmdProcess kvmd({"--max-models", "2"});
  const auto worker = Start(kvmd, "worker");
  ModelSpec spec = test::SmallSpec();
  spec.revision = "second";
  KVM_REQUIRE_OK(worker->client().DeclareModel(spec, kSoon));
  spec.revision = "third";
  KVM_CHECK_ERROR(worker->client().DeclareModel(spec, kSoon), Errc::kResourceExhausted, "model");
  KVM_REQUIRE_OK(worker->client().DeclareModel(test::SmallSpec(), kSoon));
}

TEST_CASE("Lifecycle: a full registry makes room or refuses, and never gives wrong bytes", "[integration]") {
  KvmdProcess kvmd({"--max-entries", "100"});
  WorkerOptions options;
  options.blocks = 300;
  options.block_bytes = 256;
  const auto publisher = Start(kvmd, "publisher", options), reader = Start(kvmd, "reader", options);
  for (int i = 0; i < 30; ++i) publisher->Publish("p" + std::to_string(i) + ":10", static_cast<std::uint32_t>(10 * i));
  KVM_REQUIRE_OK(publisher->Flush());
  test::RegistryProbe probe(kvmd.socket());
  CHECK(probe.live_entries() <= 100);
  CHECK(probe.live_entries() >= 50);
  std::size_t found = 0, wrong = 0;
  for (int i = 0; i < 30; ++i) {
    const ImportCheck import = reader->FindAndImport("p" + std::to_string(i) + ":10", 0);
    found += import.valid;
    wrong += import.wrong;
  }
  CHECK(found > 0);
  CHECK(wrong == 0);
  reader->Publish("mine:5", 200);
  KVM_REQUIRE_OK(reader->Flush());
}

TEST_CASE("Lifecycle: when a source dies the other replica serves", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0"});
  RemoteWorker first({.socket = kvmd.socket(), .name = "first"});
  const auto second = Start(kvmd, "second"), reader = Start(kvmd, "reader");
  first.Publish("a:8", 0);
  second->Publish("a:8", 30);
  KVM_REQUIRE_OK(second->Flush());
  test::RegistryProbe probe(kvmd.socket());
  REQUIRE(probe.live_entries() == 16);
  REQUIRE(test::Eventually([&] { return reader->Find("a:8").size() == 8 && reader->client().Stats().mapped_regions == 2; }));
  const std::vector<BlockKey> keys = reader->Keys("a:8");
  const Match before = reader->client().Find(keys);
  first.Kill();
  // The match may name the dead worker's region, which is unmapped as soon as its end is known. The
  // import is a miss then, and never wrong.
  const ImportCheck at_once = reader->Import(before, keys, 0);
  CHECK(at_once.wrong == 0);
  CHECK((at_once.valid == 8 || (at_once.valid == 0 && at_once.failed[0].reason == ImportFailure::kUnmapped)));
  REQUIRE(test::Eventually([&] { return probe.live_entries() == 8; }));
  const ImportCheck later = reader->FindAndImport("a:8", 20);
  CHECK(later.valid == 8);
  CHECK(later.wrong == 0);
}

TEST_CASE("Lifecycle: a replica that its owner reuses leaves the other one", "[integration]") {
  KvmdProcess kvmd;
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second"), reader = Start(kvmd, "reader");
  for (Worker* worker : {first.get(), second.get()}) {
    worker->Publish("a:8", 0);
    KVM_REQUIRE_OK(worker->Flush());
  }
  REQUIRE(test::Eventually([&] { return reader->Find("a:8").size() == 8 && reader->client().Stats().mapped_regions == 2; }));
  for (std::uint32_t block = 0; block < 8; ++block) (block % 2 == 0 ? first : second)->region().Retract(block);
  const Match match = reader->Find("a:8");
  REQUIRE(match.size() == 8);
  for (std::size_t i = 1; i < 8; ++i) CHECK(match[i].region != match[i - 1].region);
  const ImportCheck import = reader->FindAndImport("a:8", 0);
  CHECK(import.valid == 8);
  CHECK(import.wrong == 0);
}

TEST_CASE("Lifecycle: no more replicas of a block are kept than the limit, and the rest is refused", "[integration]") {
  KvmdProcess kvmd({"--max-replicas", "2"});
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < 4; ++i) {
    workers.push_back(Start(kvmd, "worker-" + std::to_string(i)));
    workers.back()->Publish("a:4", 0);
    KVM_REQUIRE_OK(workers.back()->Flush());
  }
  test::RegistryProbe probe(kvmd.socket());
  CHECK(probe.live_entries() == 8);
  CHECK(workers[3]->client().Stats().publishes_refused == 4);
}

TEST_CASE("Lifecycle: a client that starts without kvmd connects once kvmd runs", "[integration]") {
  KvmdProcess kvmd;
  kvmd.Kill();
  KVM_CHECK_ERROR(Worker::Start({.socket = kvmd.socket(), .name = "impatient", .blocks = 0, .timeout = std::chrono::milliseconds(100)}),
                  Errc::kUnavailable, "");
  const auto worker = Start(kvmd, "worker", {.start_offline = true});
  CHECK(worker->client().state() == ConnectionState::kConnecting);
  const PublishOutcome outcome = worker->Publish("a:4", 0);
  CHECK(outcome.readable == 4);
  CHECK(outcome.deferred == 4);
  CHECK(worker->Find("a:4").empty());
  kvmd.Start();
  KVM_REQUIRE_OK(worker->client().WaitConnected(After(std::chrono::seconds(20))));
  const auto reader = Start(kvmd, "reader");
  REQUIRE(test::Eventually([&] { return reader->Find("a:4").size() == 4; }));
  CHECK(reader->FindAndImport("a:4", 0).wrong == 0);
}

TEST_CASE("Lifecycle: SIGTERM ends kvmd with exit code 0 and without its socket", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker");
  worker->Publish("a:4", 0);
  KVM_REQUIRE_OK(worker->Flush());
  CHECK(kvmd.Stop().clean());
  CHECK_FALSE(std::filesystem::exists(kvmd.socket()));
  // What the worker had in view stays in view (I6).
  CHECK(worker->Find("a:4").size() == 4);
}

TEST_CASE("Lifecycle: a client that ends in an orderly way leaves no region, entry or descriptor", "[integration]") {
  KvmdProcess kvmd;
  test::RegistryProbe probe(kvmd.socket());
  for (int round = 0; round < 5; ++round) {
    const auto worker = Start(kvmd, "worker");
    worker->Publish("a:20", 0);
    KVM_REQUIRE_OK(worker->Flush());
  }
  CHECK(test::Eventually([&] { return probe.live_entries() == 0 && probe.live_regions() == 0 && probe.CountSlots() == 0; }));
  const kvmwire::StatusReply status = probe.Status();
  CHECK(status.protocol_errors() == 0);
}

TEST_CASE("Lifecycle: status names each client with what it has", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "the-worker");
  worker->Publish("a:7", 0);
  KVM_REQUIRE_OK(worker->Flush());
  test::RegistryProbe probe(kvmd.socket());
  const kvmwire::StatusReply status = probe.Status(/*clients=*/true);
  CHECK(status.pid() == static_cast<std::uint32_t>(kvmd.pid()));
  bool found = false;
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    if (client.name() != "the-worker") continue;
    found = true;
    CHECK(client.pid() == static_cast<std::uint32_t>(::getpid()));
    CHECK(client.regions() == 1);
    CHECK(client.entries() == 7);
  }
  CHECK(found);
}
