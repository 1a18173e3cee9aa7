// Memory of others that goes while it is used: importers and kvmd live, and no byte of it is taken
// for a block's.
#include <fcntl.h>

#include <chrono>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/lost_memory.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::KvmdProcess;
using test::RemoteWorker;

// This process holds nothing of its own but what the importer has mapped of the owner's.
struct Importing {
  Importing() : owner({.socket = kvmd.socket(), .name = "owner"}) {
    owner.Publish("a:20", 0);
    importer = test::StartWorker({.socket = kvmd.socket(), .name = "importer", .outlives_owner = false});
    REQUIRE(test::Eventually([&] { return importer->Find("a:20").size() == 20; }));
  }
  KvmdProcess kvmd;
  RemoteWorker owner;
  std::unique_ptr<test::Worker> importer;
};

}  // namespace

TEST_CASE("Lost memory: an importer whose peer's memory is gone gets a miss, and does not import from it again", "[fault]") {
  Importing node;
  const std::vector<BlockKey> keys = node.importer->Keys("a:20");
  const Match match = node.importer->Find("a:20");
  REQUIRE(test::LoseMappings("kvm-granted:payload:") > 0);
  const test::ImportCheck import = node.importer->Import(match, keys, 0);
  CHECK(import.valid == 0);
  REQUIRE_FALSE(import.failed.empty());
  CHECK(import.failed[0].reason == ImportFailure::kError);
  const test::ImportCheck again = node.importer->Import(match, keys, 0);
  CHECK(again.valid == 0);
  REQUIRE_FALSE(again.failed.empty());
  CHECK(again.failed[0].reason == ImportFailure::kUnmapped);
  FindOptions options;
  options.destination = &node.importer->region();
  CHECK(node.importer->Find("a:20", {}, options).end() == MatchEnd::kUnmapped);
  // Imports from another owner still work.
  RemoteWorker other({.socket = node.kvmd.socket(), .name = "other"});
  other.Publish("b:20", 0);
  REQUIRE(test::Eventually([&] { return node.importer->Find("b:20").size() == 20; }));
  const test::ImportCheck whole = node.importer->FindAndImport("b:20", 20);
  CHECK(whole.valid == 20);
  CHECK(whole.wrong == 0);
}

TEST_CASE("Lost memory: a worker whose slab is gone stores no block in it, and survives", "[fault]") {
  KvmdProcess kvmd({"--host-cache", "4M"});
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker", .offload = OffloadMode::kAsked});
  worker->Publish("a:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  const std::vector<std::uint32_t> first{0, 1, 2, 3}, second{4, 5, 6, 7};
  const auto offloaded = [&](const std::vector<std::uint32_t>& blocks) {
    const Result<std::size_t> count = worker->region().OffloadBeforeReuse(blocks, After(std::chrono::seconds(10)));
    KVM_REQUIRE_OK(count);
    return *count;
  };
  REQUIRE(offloaded(first) == 4);
  REQUIRE(test::LoseMappings("kvm:host-cache-", /*written=*/true) == 1);
  CHECK(offloaded(second) == 0);
}

TEST_CASE("Lost memory: no block is found in a region whose generation table is gone", "[fault]") {
  Importing node;
  REQUIRE(test::LoseMappings("kvm-granted:generations:") > 0);
  const Match match = node.importer->Find("a:20");
  CHECK(match.empty());
  CHECK(match.end() == MatchEnd::kStale);
}

TEST_CASE("Lost memory: an importer finds no block in a registry that is gone, and survives", "[fault]") {
  Importing node;
  REQUIRE(test::LoseMappings("kvmd:") > 0);
  CHECK(node.importer->Find("a:20").empty());
}

TEST_CASE("Lost memory: kvmd withdraws a region whose owner punches holes, logs the owner, and serves the others", "[fault]") {
  constexpr std::uint32_t kBlocks = 2048;
  KvmdProcess kvmd;
  const auto bystander = test::StartWorker({.socket = kvmd.socket(), .name = "bystander"});
  bystander->Publish("a:20", 0);
  KVM_REQUIRE_OK(bystander->Flush());
  Result<test::WireClient> client = test::WireClient::Connect(kvmd.socket());
  KVM_REQUIRE_OK(client);
  KVM_REQUIRE_OK(client->Hello("puncher"));
  KVM_REQUIRE_OK(client->DeclareModel(test::SmallSpec()));
  Result<test::Received> memory = client->AllocateMemory({GenerationTableBytes(kBlocks), kBlocks * 4096});
  KVM_REQUIRE_OK(memory);
  test::WireRegion region("holes", test::SmallSpec(), kBlocks, 4096, std::move(memory->fds));
  KVM_REQUIRE_OK(region.Register(*client));
  REQUIRE(::fallocate(region.generation_memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 8192) == 0);
  const Result<kvmwire::PublishAck> ack = region.Publish(*client, {region.Write(0, {1, 1})});
  KVM_REQUIRE_OK(ack);
  CHECK(ack->inserted() == 0);
  CHECK(test::Eventually([&] { return kvmd.Log().find("event=region_damaged region=holes") != std::string::npos; }));
  CHECK(kvmd.running());
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader"});
  CHECK(reader->FindAndImport("a:20", 0).valid == 20);
}
