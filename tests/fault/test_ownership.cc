// The end of ownership is written into the generations (I10): an owner that has ended a block may
// overwrite its bytes, and no importer, with or without kvmd, takes them for what they were.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/process/child_main.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::KvmdProcess;
using test::RemoteWorker;
using test::Worker;

constexpr std::uint32_t kBlocks = 8;
Deadline Soon() { return After(std::chrono::seconds(20)); }

// Overwrites memory without BeginWrite, as an engine does with memory that is its own again.
void Reuse(Region& region) { std::memset(region.SegmentData(), 0xEE, region.segment_bytes()[0]); }

std::size_t Readable(const Region& region) {
  std::size_t readable = 0;
  for (std::uint32_t block = 0; block < region.block_count(); ++block) {
    const std::uint64_t generation = region.CurrentGeneration(block);
    readable += generation != 0 && generation % 2 == 0;
  }
  return readable;
}

void CheckNothingIsImported(RemoteWorker& importer) {
  for (int round = 0; round < 3; ++round) {
    const test::RemoteImport import = importer.Import("a:8", 20);
    CHECK(import.valid == 0);
    CHECK(import.wrong == 0);
  }
}

// Its name is another's when kvmd is back; then it unregisters and reuses its memory.
const test::ChildMain refused_main("ownership_refused", [](const std::vector<std::string>& arguments) {
  const auto worker = Worker::Start({.socket = arguments.at(0), .name = "pool"});
  if (!worker) return 1;
  (*worker)->Publish("a:8", 0);
  if (!(*worker)->Flush()) return 2;
  std::puts("published");
  std::fflush(stdout);
  const auto refused = [&] {
    const Status flushed = (*worker)->Flush();
    return !flushed && flushed.error().code == Errc::kAlreadyExists;
  };
  if (!test::Eventually(refused, std::chrono::seconds(20))) return 3;
  std::puts("refused");
  std::fflush(stdout);
  if (std::getchar() == EOF) return 4;
  static_cast<void>((*worker)->region().Unregister(Soon()));
  Reuse((*worker)->region());
  std::puts("reused");
  std::fflush(stdout);
  while (std::getchar() != EOF) continue;
  return 0;
});

}  // namespace

TEST_CASE("Ownership: memory of a region that was unregistered while kvmd is away is never imported", "[fault]") {
  KvmdProcess kvmd;
  const auto owner = test::StartWorker({.socket = kvmd.socket(), .name = "owner"});
  RemoteWorker importer({.socket = kvmd.socket(), .name = "importer"});
  owner->Publish("a:8", 0);
  KVM_REQUIRE_OK(owner->Flush());
  REQUIRE(test::Eventually([&] { return importer.Find("a:8") == kBlocks; }));
  kvmd.Kill();
  REQUIRE(test::Eventually([&] { return owner->client().state() == ConnectionState::kConnecting; }));
  // Importers could not be asked to unmap the memory, and the error says so.
  KVM_CHECK_ERROR(owner->region().Unregister(Soon()), Errc::kUnavailable, "kvmd is away");
  CHECK(Readable(owner->region()) == 0);
  KVM_REQUIRE_OK(owner->region().Unregister(Soon()));  // nothing is left to do
  Reuse(owner->region());
  CheckNothingIsImported(importer);
  kvmd.Start();
  importer.WaitConnected();
  CheckNothingIsImported(importer);
  RemoteWorker late({.socket = kvmd.socket(), .name = "late"});
  CHECK(late.Find("a:8") == 0);
}

TEST_CASE("Ownership: a region that kvmd never knew ends without kvmd", "[fault]") {
  KvmdProcess kvmd;
  kvmd.Kill();
  const auto owner = test::StartWorker({.socket = kvmd.socket(), .name = "owner", .start_offline = true});
  CHECK(owner->Publish("a:8", 0).readable == kBlocks);
  KVM_REQUIRE_OK(owner->region().Unregister(Soon()));
  CHECK(Readable(owner->region()) == 0);
}

TEST_CASE("Ownership: a client's end ends the blocks of its regions, though their memory still exists", "[fault]") {
  KvmdProcess kvmd;
  ClientOptions options;
  options.socket_path = kvmd.socket();
  options.name = "owner";
  std::shared_ptr<Client> client = *Client::Connect(options);
  const Model model = *client->DeclareModel(test::SmallSpec(), Soon());
  RegionOptions pool;
  pool.name = "pool";
  pool.geometry = Geometry::Contiguous(64, 4096);
  const std::shared_ptr<Region> region = *client->AllocateRegion(model, pool, Soon());
  std::vector<PublishRequest> requests;
  KeyChain chain(model.fingerprint, pool.shard);
  const BlockKey root = chain.parent();
  for (std::uint32_t block = 0; block < kBlocks; ++block) requests.push_back({{block + 1, 5}, root, block, region->BeginWrite(block)});
  const BlockWrite under_way = region->BeginWrite(20);
  CHECK(region->Publish(requests).readable == kBlocks);
  bool with_kvmd = true;
  SECTION("kvmd is there") {}
  SECTION("kvmd is away") {
    with_kvmd = false;
    kvmd.Kill();
    REQUIRE(test::Eventually([&] { return client->state() == ConnectionState::kConnecting; }));
  }
  CHECK(Readable(*region) == kBlocks);
  client.reset();
  CHECK(Readable(*region) == 0);
  CHECK(region->BeginWrite(0).generation == 0);
  CHECK(region->Publish(std::vector<PublishRequest>{{{99, 5}, root, 0, under_way}}).lost_race == 1);
  CHECK(Readable(*region) == 0);
  if (!with_kvmd) return;
  test::RegistryProbe probe(kvmd.socket());
  CHECK(test::Eventually([&] { return probe.live_entries() == 0 && probe.RegionRows() == 0; }));
}

TEST_CASE("Ownership: after a region is unregistered no call publishes, imports, offloads or waits", "[fault]") {
  KvmdProcess kvmd({"--host-cache", "16M"});
  const auto owner = test::StartWorker({.socket = kvmd.socket(), .name = "owner"}),
             other = test::StartWorker({.socket = kvmd.socket(), .name = "other"});
  other->Publish("b:4", 0);
  KVM_REQUIRE_OK(other->Flush());
  REQUIRE(test::Eventually([&] { return owner->Find("b:4").size() == 4; }));
  const Match match = owner->Find("b:4");
  owner->Publish("a:8", 0);
  const BlockWrite under_way = owner->region().BeginWrite(20);
  KVM_REQUIRE_OK(owner->region().Unregister(Soon()));
  Region& region = owner->region();
  CHECK(Readable(region) == 0);

  CHECK(region.BeginWrite(0).generation == 0);
  const std::vector<BlockKey> keys = owner->Keys("c:1");
  const std::vector<PublishRequest> requests{{keys[0], keys[0], 0, under_way}};
  CHECK(region.Publish(requests).readable == 0);
  CHECK(region.Publish(requests).lost_race == 1);
  KVM_CHECK_ERROR(region.PublishOnStream(requests, StreamHandle{}), Errc::kCancelled, "closed");
  KVM_CHECK_ERROR(region.Flush(Soon()), Errc::kCancelled, "closed");
  const std::vector<std::uint32_t> blocks{0, 1, 2, 3};
  CHECK(region.Offload(blocks) == 0);
  const Result<std::size_t> offloaded = region.OffloadBeforeReuse(blocks, Soon());
  KVM_REQUIRE_OK(offloaded);
  CHECK(*offloaded == 0);
  KVM_CHECK_ERROR(owner->client().Import(match, region, blocks), Errc::kCancelled, "closed");
  CHECK(Readable(region) == 0);
}

TEST_CASE("Ownership: publishes that race with unregistering leave no readable block", "[fault]") {
  KvmdProcess kvmd;
  for (int round = 0; round < 20; ++round) {
    const auto owner = test::StartWorker({.socket = kvmd.socket(), .name = "owner"});
    std::atomic<bool> stop{false};
    std::atomic<std::size_t> published{0};
    std::vector<std::thread> engines;
    for (int engine = 0; engine < 2; ++engine) {
      engines.emplace_back([&, engine] {
        while (!stop) published += owner->Publish("e" + std::to_string(engine) + ":8", 0).readable;
      });
    }
    while (published == 0) std::this_thread::yield();
    CHECK(owner->region().Unregister(Soon()).has_value());
    std::size_t readable = 0;
    for (int look = 0; look < 1000; ++look) readable += Readable(owner->region());
    stop = true;
    for (std::thread& engine : engines) engine.join();
    CHECK(readable == 0);
    CHECK(Readable(owner->region()) == 0);
  }
}

TEST_CASE("Ownership: a region that kvmd refuses after its restart ends like any other", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker importer({.socket = kvmd.socket(), .name = "importer"});
  test::ChildProcess owner = test::ChildProcess::Self("ownership_refused", {kvmd.socket()});
  REQUIRE(owner.ReadLine(std::chrono::seconds(20)) == "published");
  REQUIRE(test::Eventually([&] { return importer.Find("a:8") == kBlocks; }));
  owner.Signal(SIGSTOP);
  kvmd.Kill();
  kvmd.Start();
  const auto twin = test::StartWorker({.socket = kvmd.socket(), .name = "pool"});
  owner.Signal(SIGCONT);
  REQUIRE(owner.ReadLine(std::chrono::seconds(20)) == "refused");
  importer.WaitConnected();
  // Still its owner's: found in the registry of before, and true.
  CHECK(importer.Import("a:8", 20).wrong == 0);
  REQUIRE(owner.WriteLine("unregister"));
  REQUIRE(owner.ReadLine(std::chrono::seconds(20)) == "reused");
  CheckNothingIsImported(importer);
}
