// Owners that reuse blocks: what was found before is noticed when it is imported (I2, I4, I8), and
// a block belongs to the write that began last (I3: the order of a write).
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
using test::Worker;

}  // namespace

TEST_CASE("Reuse: a block reused between find and import fails, with all behind it", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner"), reader = Start(kvmd, "reader");
  owner->Publish("a:6", 0);
  KVM_REQUIRE_OK(owner->Flush());
  REQUIRE(test::Eventually([&] { return reader->Find("a:6").size() == 6; }));
  const std::vector<BlockKey> keys = reader->Keys("a:6");
  const Match match = reader->client().Find(keys);
  owner->region().Retract(2);
  const ImportCheck import = reader->Import(match, keys, 10);
  CHECK(import.matched == 6);
  CHECK(import.valid == 2);
  CHECK(import.wrong == 0);
  REQUIRE(import.failed.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(import.failed[i].index == 2 + i);
    CHECK(import.failed[i].block == 12 + i);
    CHECK(import.failed[i].reason == (i == 0 ? ImportFailure::kStale : ImportFailure::kBehindFailed));
  }
  const ClientStats stats = reader->client().Stats();
  CHECK(stats.imports_failed_stale == 1);
  CHECK(stats.blocks_failed == 4);
}

TEST_CASE("Reuse: a block that its owner writes again ends the match as stale", "[integration]") {
  KvmdProcess kvmd({"--sweep-interval-ms", "600000"});
  test::RemoteWorker owner({.socket = kvmd.socket(), .name = "owner"});
  const auto reader = Start(kvmd, "reader");
  owner.Publish("a:6", 0);
  REQUIRE(test::Eventually([&] { return reader->Find("a:6").size() == 6; }));
  owner.BeginWrites(4, 1);
  const Match match = reader->Find("a:6");
  CHECK(match.size() == 4);
  CHECK(match.end() == MatchEnd::kStale);
}

TEST_CASE("Reuse: kvmd drops entries of reused blocks by itself", "[integration]") {
  KvmdProcess kvmd({"--sweep-interval-ms", "10"});
  const auto owner = Start(kvmd, "owner");
  test::RegistryProbe probe(kvmd.socket());
  owner->Publish("a:20", 0);
  KVM_REQUIRE_OK(owner->Flush());
  CHECK(probe.live_entries() == 20);
  for (std::uint32_t block = 0; block < 15; ++block) owner->region().Retract(block);
  CHECK(test::Eventually([&] { return probe.live_entries() == 5; }));
  CHECK(probe.CountSlots() == 5);
}

TEST_CASE("Reuse: a block published under a new key is found under that and not under the old one", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner"), reader = Start(kvmd, "reader");
  for (int round = 0; round < 50; ++round) {
    const std::string prompt = "round" + std::to_string(round) + ":4";
    owner->Publish(prompt, 0);
    KVM_REQUIRE_OK(owner->Flush());
    REQUIRE(test::Eventually([&] { return reader->Find(prompt).size() == 4; }));
    if (round > 0) CHECK(reader->Find("round" + std::to_string(round - 1) + ":4").empty());
    const ImportCheck import = reader->FindAndImport(prompt, 8);
    CHECK(import.valid == 4);
    CHECK(import.wrong == 0);
  }
  test::RegistryProbe probe(kvmd.socket());
  CHECK(test::Eventually([&] { return probe.live_entries() == 4; }));
}

TEST_CASE("Reuse: of two writes of one block only the later one publishes", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner");
  const std::vector<BlockKey> keys = owner->Keys("a:1,b:1");
  const BlockWrite first = owner->region().BeginWrite(0);
  const BlockWrite second = owner->region().BeginWrite(0);
  const PublishRequest late{keys[0], {}, 0, first}, good{keys[1], keys[0], 1, second};
  CHECK(owner->region().Publish(std::span(&late, 1)).lost_race == 1);
  CHECK(owner->region().CurrentGeneration(0) == second.generation);
  const PublishOutcome outcome = owner->region().Publish(std::span(&good, 1));
  CHECK(outcome.readable == 1);
  CHECK(outcome.lost_race == 0);
  KVM_REQUIRE_OK(owner->Flush());
  CHECK(owner->client().Find(std::span(keys).first(1)).empty());
  CHECK(owner->client().Find(std::span(keys).subspan(1)).size() == 1);
}

TEST_CASE("Reuse: writes that no BeginWrite returned publish no block", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner");
  const BlockKey key = owner->Keys("a:1").front();
  const BlockWrite outside = owner->region().BeginWrite(64);
  const std::vector<PublishRequest> requests = {
      {key, {}, 0, outside}, {key, {}, 0, {0, 0}}, {key, {}, 0, {0, 2}}, {key, {}, 0, {0, 99}}, {key, {}, 0, {~0u, 1}}};
  const PublishOutcome outcome = owner->region().Publish(requests);
  CHECK(outcome.readable == 0);
  CHECK(outcome.lost_race == requests.size());
  KVM_REQUIRE_OK(owner->Flush());
  CHECK(owner->Find("a:1").empty());
}

TEST_CASE("Reuse: an import withdraws its destination blocks from others", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner"), reader = Start(kvmd, "reader");
  owner->Publish("a:4", 0);
  reader->Publish("b:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  KVM_REQUIRE_OK(reader->Flush());
  REQUIRE(test::Eventually([&] { return owner->Find("b:4").size() == 4 && reader->Find("a:4").size() == 4; }));
  const std::vector<BlockKey> keys = owner->Keys("b:4");
  const Match before = owner->client().Find(keys);
  REQUIRE(reader->FindAndImport("a:4", 0).valid == 4);
  CHECK(owner->Find("b:4").empty());
  const ImportCheck import = owner->Import(before, keys, 20);
  CHECK(import.valid == 0);
  CHECK(import.failed.size() == 4);
}

TEST_CASE("Reuse: with checksums, an importer that verifies finds bytes that changed without a new generation", "[integration]") {
  KvmdProcess kvmd;
  Result<std::unique_ptr<Worker>> owner = Worker::Start({.socket = kvmd.socket(), .name = "owner", .checksums = true});
  KVM_REQUIRE_OK(owner);
  const auto plain = Start(kvmd, "plain"), reader = Start(kvmd, "reader");
  (*owner)->Publish("a:6", 0);
  plain->Publish("b:3", 0);
  KVM_REQUIRE_OK((*owner)->Flush());
  KVM_REQUIRE_OK(plain->Flush());
  REQUIRE(test::Eventually([&] { return reader->Find("a:6").size() == 6 && reader->Find("b:3").size() == 3; }));
  ImportOptions verify;
  verify.verify = true;
  const std::vector<BlockKey> keys = reader->Keys("a:6"), other = reader->Keys("b:3");
  CHECK(reader->Import(reader->Find("a:6"), keys, 10, verify).valid == 6);
  // Nothing to compare with
  CHECK(reader->Import(reader->Find("b:3"), other, 20, verify).valid == 3);

  // As a fault, or an owner that breaks the rules, would do it.
  (*owner)->region().BlockData(4)[100] ^= std::byte{1};
  CHECK(reader->Import(reader->Find("a:6"), keys, 10).wrong == 1);  // so the check below can fail
  const ImportCheck verified = reader->Import(reader->Find("a:6"), keys, 10, verify);
  CHECK(verified.valid == 4);
  CHECK(verified.wrong == 0);
  REQUIRE(verified.failed.size() == 2);
  CHECK(verified.failed[0].index == 4);
  CHECK(verified.failed[0].reason == ImportFailure::kCorrupt);
  CHECK(verified.failed[1].reason == ImportFailure::kBehindFailed);
  CHECK(reader->client().Stats().imports_failed_corrupt == 1);

  // Written anew by the rules, it has a checksum of its own.
  (*owner)->Publish("a:6", 4, {}, 4, 1);
  KVM_REQUIRE_OK((*owner)->Flush());
  REQUIRE(test::Eventually([&] { return reader->Find("a:6").size() == 6; }));
  CHECK(reader->Import(reader->Find("a:6"), keys, 10, verify).valid == 6);
}
