// kvmd is killed and started again: lookups and imports go on meanwhile, clients come back by
// themselves, and nothing that was published is lost (I6).
#include <chrono>
#include <csignal>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/worker/busy_worker.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ChildProcess;
using test::KvmdProcess;
using test::RemoteWorker;

}  // namespace

TEST_CASE("kvmd death: finds and imports go on while it is down", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  RemoteWorker importer({.socket = kvmd.socket(), .name = "importer"});
  publisher.Publish("a:16", 0);
  REQUIRE(importer.Find("a:16") == 16);
  kvmd.Kill();
  for (int round = 0; round < 3; ++round) {
    const test::RemoteImport import = importer.Import("a:16", 20);
    CHECK(import.valid == 16);
    CHECK(import.wrong == 0);
  }
}

TEST_CASE("kvmd death: an owner's reuse is noticed while it is down", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  RemoteWorker importer({.socket = kvmd.socket(), .name = "importer"});
  publisher.Publish("a:16", 0);
  REQUIRE(importer.Find("a:16") == 16);
  kvmd.Kill();
  publisher.BeginWrites(5, 1);
  CHECK(importer.Find("a:16") == 5);
  const test::RemoteImport import = importer.Import("a:16", 20);
  CHECK(import.valid == 5);
  CHECK(import.wrong == 0);
}

TEST_CASE("kvmd death: after a restart everything published is found again, without help", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  RemoteWorker importer({.socket = kvmd.socket(), .name = "importer"});
  publisher.Publish("a:16", 0);
  REQUIRE(importer.Find("a:16") == 16);
  kvmd.Kill();
  publisher.PublishDeferred("b:8", 30);  // none or all: it may not have noticed yet
  publisher.BeginWrites(15, 1);
  kvmd.Start();
  publisher.WaitConnected();
  importer.WaitConnected();
  CHECK(test::Eventually([&] { return importer.Find("b:8") == 8; }));
  CHECK(test::Eventually([&] { return importer.Find("a:16") == 15; }));
  RemoteWorker late({.socket = kvmd.socket(), .name = "late"});
  CHECK(test::Eventually([&] { return late.Find("b:8") == 8 && late.Find("a:16") == 15; }));
  const test::RemoteImport import = late.Import("a:16", 0);
  CHECK(import.valid == 15);
  CHECK(import.wrong == 0);
}

// Where the registry of before a reconnect is dropped at once, the stopped owner's blocks are
// misses: seen.
TEST_CASE("kvmd death: after a restart the old registry serves until owners have registered again", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker owner({.socket = kvmd.socket(), .name = "owner"});
  owner.Publish("a:16", 0);
  const auto reader = Start(kvmd, "reader");
  REQUIRE(test::Eventually([&] { return reader->Find("a:16").size() == 16; }));
  owner.process().Signal(SIGSTOP);  // it will not register again
  kvmd.Kill();
  kvmd.Start();
  REQUIRE(test::Eventually([&] { return reader->client().Stats().reconnects == 1; }));
  KVM_REQUIRE_OK(reader->client().WaitConnected(After(std::chrono::seconds(20))));
  const test::ImportCheck import = reader->FindAndImport("a:16", 0);
  CHECK(import.valid == 16);
  CHECK(import.wrong == 0);
  owner.process().Signal(SIGCONT);
  owner.WaitConnected();
  const auto late = Start(kvmd, "late");
  CHECK(test::Eventually([&] { return late->Find("a:16").size() == 16; }));
}

TEST_CASE("kvmd death: a client says that it is not connected, and keeps every deadline", "[fault]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker");
  CHECK(worker->client().state() == ConnectionState::kConnected);
  CHECK(worker->client().client_id() != 0);
  kvmd.Kill();
  REQUIRE(test::Eventually([&] { return worker->client().state() == ConnectionState::kConnecting; }));
  CHECK(worker->client().client_id() == 0);
  CHECK_FALSE(worker->client().last_error().message.empty());
  CHECK(worker->Publish("a:4", 0).deferred == 4);
  KVM_CHECK_ERROR(worker->Flush(std::chrono::milliseconds(50)), Errc::kUnavailable, "");
  KVM_CHECK_ERROR(worker->client().WaitConnected(After(std::chrono::milliseconds(50))), Errc::kDeadlineExceeded, "");
  ModelSpec spec = test::SmallSpec();
  spec.revision = "declared while kvmd was down";
  const Result<Model> model = worker->client().DeclareModel(spec, After(std::chrono::seconds(5)));
  KVM_REQUIRE_OK(model);
  RegionOptions options;
  options.name = "made-while-kvmd-was-down";
  options.geometry = Geometry::Contiguous(4, 4096);
  const auto region = worker->client().AllocateRegion(*model, options, After(std::chrono::seconds(5)));
  KVM_REQUIRE_OK(region);
  kvmd.Start();
  KVM_REQUIRE_OK(worker->client().WaitConnected(After(std::chrono::seconds(20))));
  CHECK(worker->client().Stats().reconnects == 1);
  test::RegistryProbe probe(kvmd.socket());
  CHECK(test::Eventually([&] { return probe.live_regions() == 2 && probe.live_models() == 2 && probe.live_entries() == 4; }));
}

TEST_CASE("kvmd death: a restart under load costs no wrong byte, and all clients are back", "[fault]") {
  KvmdProcess kvmd;
  const auto steady = Start(kvmd, "steady");
  steady->Publish("steady:20", 0);
  KVM_REQUIRE_OK(steady->Flush());
  test::BusyCrew crew(kvmd.socket(), 100, 3);
  test::Random random(5);
  for (int restart = 0; restart < 6; ++restart) {
    test::SleepMs(static_cast<int>(random.Between(50, 250)));
    kvmd.Kill();
    test::SleepMs(static_cast<int>(random.Below(100)));
    kvmd.Start();
  }
  KVM_REQUIRE_OK(steady->client().WaitConnected(After(std::chrono::seconds(20))));
  const auto late = Start(kvmd, "late");
  CHECK(test::Eventually([&] { return late->Find("steady:20").size() == 20; }));
  CHECK(late->FindAndImport("steady:20", 0).wrong == 0);
  CHECK(crew.EndWell());
}

TEST_CASE("kvmd death: a second kvmd refuses to start on a live socket, and takes over a dead one", "[fault]") {
  KvmdProcess kvmd;
  const std::string log = kvmd.dir() / "second.log";
  ChildProcess second({test::KvmdBinary(), "--socket", kvmd.socket()}, log);
  const std::optional<test::ProcessEnd> end = second.Wait(std::chrono::seconds(20));
  REQUIRE(end.has_value());
  CHECK(end->signal == 0);
  CHECK(end->code != 0);
  CHECK(Start(kvmd, "worker") != nullptr);
  kvmd.Kill();  // leaves its socket file
  kvmd.Start();
  CHECK(Start(kvmd, "worker") != nullptr);
}
