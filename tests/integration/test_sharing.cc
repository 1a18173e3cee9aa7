// Two workers on one kvmd: what is shared, what is not, and that shared bytes are the right ones.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/geometries.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ImportCheck;
using test::KvmdProcess;
using test::RemoteWorker;
using test::Worker;
using test::WorkerOptions;

void PublishAndFlush(Worker& worker, const std::string& prompt, std::uint32_t first_block, std::span<const ExtraKey> extras = {}) {
  worker.Publish(prompt, first_block, extras);
  KVM_REQUIRE_OK(worker.Flush());
}

// Waits until `worker` finds `blocks` blocks of the prompt; the size it found last.
std::size_t FindEventually(const Worker& worker, const std::string& prompt, std::size_t blocks) {
  test::Eventually([&] { return worker.Find(prompt).size() >= blocks; });
  return worker.Find(prompt).size();
}

}  // namespace

TEST_CASE("Sharing: a second process imports what the first one published, byte for byte", "[integration]") {
  KvmdProcess kvmd;
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  RemoteWorker importer({.socket = kvmd.socket(), .name = "importer"});
  publisher.Publish("a:16", 3);
  const test::RemoteImport import = importer.Import("a:16", 20);
  CHECK(import.matched == 16);
  CHECK(import.valid == 16);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sharing: a new worker finds blocks at once that were published before it connected", "[integration]") {
  KvmdProcess kvmd;
  const auto early = Start(kvmd, "early");
  PublishAndFlush(*early, "a:5", 0);
  const auto late = Start(kvmd, "late");
  const ImportCheck import = late->FindAndImport("a:5", 10);
  CHECK(import.valid == 5);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sharing: a worker finds blocks that a worker publishes which connected later", "[integration]") {
  KvmdProcess kvmd;
  const auto early = Start(kvmd, "early");
  const auto late = Start(kvmd, "late");
  PublishAndFlush(*late, "a:5", 0);
  REQUIRE(FindEventually(*early, "a:5", 5) == 5);
  const ImportCheck import = early->FindAndImport("a:5", 10);
  CHECK(import.valid == 5);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sharing: an imported block can be published again and imported from there", "[integration]") {
  KvmdProcess kvmd;
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second"), third = Start(kvmd, "third");
  PublishAndFlush(*first, "a:4", 0);
  REQUIRE(FindEventually(*second, "a:4", 4) == 4);
  const std::vector<BlockKey> keys = second->Keys("a:4");
  const std::uint32_t blocks[] = {7, 6, 5, 4};
  Result<ImportTicket> ticket = second->client().Import(second->client().Find(keys), second->region(), blocks);
  KVM_REQUIRE_OK(ticket);
  KVM_REQUIRE_OK(ticket->Wait(After(std::chrono::seconds(10))));
  REQUIRE(ticket->result().valid == 4);
  std::vector<PublishRequest> requests;
  for (std::uint32_t i = 0; i < 4; ++i) requests.push_back({keys[i], i == 0 ? BlockKey{} : keys[i - 1], i, ticket->result().writes[i]});
  CHECK(second->region().Publish(requests).readable == 4);
  KVM_REQUIRE_OK(second->Flush());
  first->DropClient();
  REQUIRE(FindEventually(*third, "a:4", 4) == 4);
  const ImportCheck import = third->FindAndImport("a:4", 0);
  CHECK(import.valid == 4);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sharing: a longer prompt matches the published prefix and ends as absent", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:4", 0);
  REQUIRE(FindEventually(*reader, "a:4", 4) == 4);
  CHECK(reader->Find("a:4").end() == MatchEnd::kComplete);
  const Match match = reader->Find("a:9");
  CHECK(match.size() == 4);
  CHECK(match.end() == MatchEnd::kAbsent);
}

TEST_CASE("Sharing: a shorter prompt matches wholly inside a longer published one", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:9", 0);
  REQUIRE(FindEventually(*reader, "a:9", 9) == 9);
  CHECK(reader->Find("a:4").size() == 4);
  CHECK(reader->Find("a:4").end() == MatchEnd::kComplete);
}

TEST_CASE("Sharing: prompts share exactly the blocks before their first difference", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:6,b:4", 0);
  REQUIRE(FindEventually(*reader, "a:6,b:4", 10) == 10);
  CHECK(reader->Find("a:6,c:4").size() == 6);
  CHECK(reader->Find("a:3,b:4").size() == 3);
  CHECK(reader->Find("b:4").size() == 0);
}

TEST_CASE("Sharing: a gap of one block is not bridged", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  publisher->Publish("a:8", 0, {}, 0, 3);
  publisher->Publish("a:8", 10, {}, 4);
  KVM_REQUIRE_OK(publisher->Flush());
  REQUIRE(FindEventually(*reader, "a:8", 3) == 3);
  CHECK(reader->Find("a:8").end() == MatchEnd::kAbsent);
  publisher->Publish("a:8", 20, {}, 3, 1);
  KVM_REQUIRE_OK(publisher->Flush());
  CHECK(FindEventually(*reader, "a:8", 8) == 8);
  CHECK(reader->FindAndImport("a:8", 0).wrong == 0);
}

TEST_CASE("Sharing: another cache salt, LoRA or order of both shares no block", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  const std::vector<ExtraKey> lora{{ExtraKey::Kind::kLora, "sql"}}, salt{{ExtraKey::Kind::kCacheSalt, "tenant"}}, both{lora[0], salt[0]},
      reversed{salt[0], lora[0]}, other_salt{{ExtraKey::Kind::kCacheSalt, "tenant2"}};
  PublishAndFlush(*publisher, "a:4", 0, lora);
  PublishAndFlush(*publisher, "a:4", 10, both);
  REQUIRE(test::Eventually([&] { return reader->Find("a:4", both).size() == 4; }));
  CHECK(reader->Find("a:4", lora).size() == 4);
  CHECK(reader->Find("a:4").empty());
  CHECK(reader->Find("a:4", salt).empty());
  CHECK(reader->Find("a:4", other_salt).empty());
  CHECK(reader->Find("a:4", reversed).empty());
}

TEST_CASE("Sharing: another revision shares no block, and NearMisses names the field", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher");
  PublishAndFlush(*publisher, "a:4", 0);
  WorkerOptions options;
  options.spec = test::SmallSpec();
  options.spec.revision = "another";
  const auto reader = Start(kvmd, "reader", options);
  CHECK(reader->Find("a:4").empty());
  const std::vector<NearMiss> misses = reader->client().NearMisses(reader->model());
  REQUIRE(misses.size() == 1);
  CHECK(misses.front().theirs == test::SmallSpec());
  REQUIRE(misses.front().differences.size() == 1);
  CHECK(misses.front().differences.front().field == "revision");
  CHECK(misses.front().differences.front().ours == "another");
  CHECK(misses.front().differences.front().theirs == test::SmallSpec().revision);
}

TEST_CASE("Sharing: a model that differs in its name alone is a near miss", "[integration]") {
  KvmdProcess kvmd;
  const auto one = Start(kvmd, "one");
  WorkerOptions options;
  options.spec = test::SmallSpec();
  options.spec.model_id = "/another/mount";
  const auto other = Start(kvmd, "other", options);
  const std::vector<NearMiss> misses = other->client().NearMisses(other->model());
  REQUIRE(misses.size() == 1);
  REQUIRE(misses.front().differences.size() == 1);
  CHECK(misses.front().differences.front().field == "model_id");
  CHECK(misses.front().differences.front().theirs == test::SmallSpec().model_id);
}

TEST_CASE("Sharing: another model under another id is no near miss, the own model neither", "[integration]") {
  KvmdProcess kvmd;
  const auto one = Start(kvmd, "one");
  WorkerOptions options;
  options.spec = test::SmallSpec();
  options.spec.model_id = "someone/else";
  options.spec.revision = "another";
  const auto other = Start(kvmd, "other", options);
  CHECK(other->client().NearMisses(other->model()).empty());
  CHECK(one->client().NearMisses(one->model()).empty());
}

TEST_CASE("Sharing: another user's worker shares no block and sees none", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to start a worker as another user");
  constexpr unsigned kNobody = 65534;
  KvmdProcess kvmd;
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  RemoteWorker root({.socket = kvmd.socket(), .name = "root"});
  root.Publish("a:8", 0);
  RemoteWorker nobody({.socket = kvmd.socket(), .name = "nobody"}, kNobody);
  CHECK(nobody.Find("a:8") == 0);
  nobody.Publish("a:3", 0);
  CHECK(nobody.Find("a:8") == 3);
  CHECK(root.Find("a:8") == 8);
  RemoteWorker second({.socket = kvmd.socket(), .name = "second"}, kNobody);
  CHECK(second.Import("a:8", 0).valid == 3);
}

TEST_CASE("Sharing: with one domain for the node, users share", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to start a worker as another user");
  KvmdProcess kvmd({"--domain-mode", "node"});
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  RemoteWorker root({.socket = kvmd.socket(), .name = "root"});
  root.Publish("a:8", 0);
  RemoteWorker nobody({.socket = kvmd.socket(), .name = "nobody"}, 65534);
  const test::RemoteImport import = nobody.Import("a:8", 0);
  CHECK(import.valid == 8);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sharing: regions of different layouts import from each other", "[integration]") {
  KvmdProcess kvmd;
  std::vector<std::unique_ptr<Worker>> workers;
  int number = 0;
  for (const test::NamedGeometry& layout : test::EngineLayouts(24)) {
    // One piece per token and head: covered in-process
    if (layout.geometry.parts.size() > 64) continue;
    WorkerOptions options;
    options.geometry = layout.geometry;
    workers.push_back(Start(kvmd, "worker-" + std::to_string(number++), options));
  }
  REQUIRE(workers.size() >= 5);
  for (std::size_t from = 0; from < workers.size(); ++from) {
    const std::string prompt = "from" + std::to_string(from) + ":3";
    PublishAndFlush(*workers[from], prompt, 2);
    for (std::size_t to = 0; to < workers.size(); ++to) {
      if (to == from) continue;
      REQUIRE(FindEventually(*workers[to], prompt, 3) == 3);
      const ImportCheck import = workers[to]->FindAndImport(prompt, 10);
      INFO("from layout " << from << " to layout " << to);
      CHECK(import.valid == 3);
      CHECK(import.wrong == 0);
    }
  }
}

TEST_CASE("Sharing: a worker finds its own blocks unless include_own is false", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker");
  PublishAndFlush(*worker, "a:4", 0);
  const Match match = worker->Find("a:4");
  REQUIRE(match.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(match[i].own);
    CHECK(match[i].block == i);
  }
  CHECK(worker->Find("a:4", {}, {.include_own = false}).empty());
  const ImportCheck import = worker->FindAndImport("a:4", 10);
  CHECK(import.valid == 4);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sharing: a slice of a match imports only that part", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:8", 0);
  REQUIRE(FindEventually(*reader, "a:8", 8) == 8);
  const std::vector<BlockKey> keys = reader->Keys("a:8");
  const Match match = reader->client().Find(keys);
  const Match slice = match.Slice(3, 2);
  REQUIRE(slice.size() == 2);
  CHECK(slice[0].block == 3);
  CHECK(match.Slice(6).size() == 2);
  CHECK(match.Slice(7, 100).size() == 1);
  CHECK(match.Slice(8).empty());
  CHECK(match.Slice(100).empty());
  const ImportCheck import = reader->Import(slice, std::span(keys).subspan(3), 20);
  CHECK(import.valid == 2);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sharing: shards match as far as the shortest of them", "[integration]") {
  KvmdProcess kvmd;
  const Shard first{0, 2, 0, 1, 0}, second{1, 2, 0, 1, 0};
  WorkerOptions options{.spec = test::SmallSpec(), .shard = first};
  options.spec.tp_size = 2;
  const auto rank0 = Start(kvmd, "rank0", options);
  options.shard = second;
  const auto rank1 = Start(kvmd, "rank1", options);
  PublishAndFlush(*rank0, "a:8", 0);
  PublishAndFlush(*rank1, "a:5", 0);
  REQUIRE(FindEventually(*rank0, "a:8", 8) == 8);
  REQUIRE(FindEventually(*rank1, "a:5", 5) == 5);
  const std::vector<BlockKey> keys0 = rank0->Keys("a:8"), keys1 = rank1->Keys("a:8");
  CHECK(keys0.front() != keys1.front());
  const std::span<const BlockKey> by_shard[] = {keys0, keys1};
  REQUIRE(test::Eventually([&] { return rank0->client().FindShards(by_shard).front().size() == 5; }));
  const std::vector<Match> matches = rank0->client().FindShards(by_shard);
  REQUIRE(matches.size() == 2);
  CHECK(matches[0].size() == 5);
  CHECK(matches[1].size() == 5);
}

TEST_CASE("Sharing: an import with wrong arguments is refused and touches no block", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  RegionOptions other_group{.name = "larger", .shard = {0, 1, 0, 1, 1}, .geometry = Geometry::Contiguous(3, 8192), .segment_bytes = {}};
  const auto larger = reader->client().AllocateRegion(reader->model(), other_group, After(std::chrono::seconds(10)));
  KVM_REQUIRE_OK(larger);
  PublishAndFlush(*publisher, "a:3", 0);
  REQUIRE(FindEventually(*reader, "a:3", 3) == 3);
  const Match match = reader->Find("a:3");
  using Blocks = std::vector<std::uint32_t>;
  KVM_CHECK_ERROR(reader->client().Import(match, reader->region(), Blocks{0, 1}), Errc::kInvalidArgument, "3 blocks");
  KVM_CHECK_ERROR(reader->client().Import(match, reader->region(), Blocks{0, 1, 64}), Errc::kInvalidArgument, "64");
  KVM_CHECK_ERROR(reader->client().Import(match, reader->region(), Blocks{0, 1, 0}), Errc::kInvalidArgument, "twice");
  const RegionOptions many_options{
      .name = "many", .shard = {0, 1, 0, 1, 2}, .geometry = Geometry::Contiguous(8192, 64), .segment_bytes = {}};
  const auto many = reader->client().AllocateRegion(reader->model(), many_options, After(std::chrono::seconds(10)));
  KVM_REQUIRE_OK(many);
  KVM_CHECK_ERROR(reader->client().Import(match, **many, Blocks{8191, 1, 8191}), Errc::kInvalidArgument, "twice");
  KVM_CHECK_ERROR(reader->client().Import(match, publisher->region(), Blocks{0, 1, 2}), Errc::kInvalidArgument, "another client");
  KVM_CHECK_ERROR(reader->client().Import(match, **larger, Blocks{0, 1, 2}), Errc::kInvalidArgument, "size");
  for (std::uint32_t block = 0; block < 3; ++block) {
    CHECK(reader->region().CurrentGeneration(block) == 0);
    CHECK((*larger)->CurrentGeneration(block) == 0);
  }
}

TEST_CASE("Sharing: importing an empty match is done at once", "[integration]") {
  KvmdProcess kvmd;
  const auto reader = Start(kvmd, "reader");
  Result<ImportTicket> ticket = reader->client().Import(reader->Find("nothing:3"), reader->region(), {});
  KVM_REQUIRE_OK(ticket);
  CHECK(ticket->Done());
  CHECK(ticket->result().valid == 0);
  CHECK(ticket->result().failed.empty());
}

TEST_CASE("Sharing: an import whose deadline has passed reports its blocks", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:3", 0);
  REQUIRE(FindEventually(*reader, "a:3", 3) == 3);
  const std::uint32_t blocks[] = {0, 1, 2};
  Result<ImportTicket> ticket =
      reader->client().Import(reader->Find("a:3"), reader->region(), blocks, {.deadline = std::chrono::steady_clock::now()});
  KVM_REQUIRE_OK(ticket);
  KVM_REQUIRE_OK(ticket->Wait(After(std::chrono::seconds(5))));
  CHECK(ticket->result().valid == 0);
  REQUIRE(ticket->result().failed.size() == 3);
  CHECK(ticket->result().failed[0].reason == ImportFailure::kDeadline);
  CHECK(ticket->result().failed[1].reason == ImportFailure::kBehindFailed);
  CHECK(reader->client().Stats().imports_failed_deadline == 1);
}

TEST_CASE("Sharing: statistics count what was found, imported and published", "[integration]") {
  KvmdProcess kvmd;
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:4", 0);
  REQUIRE(FindEventually(*reader, "a:4", 4) == 4);
  const ClientStats before = reader->client().Stats();
  REQUIRE(reader->FindAndImport("a:6", 0).valid == 4);
  const ClientStats after = reader->client().Stats();
  CHECK(after.finds == before.finds + 1);
  CHECK(after.keys_looked_up == before.keys_looked_up + 6);
  CHECK(after.keys_matched == before.keys_matched + 4);
  CHECK(after.imports == before.imports + 1);
  CHECK(after.blocks_imported == before.blocks_imported + 4);
  CHECK(after.bytes_imported == before.bytes_imported + 4 * 4096);
  CHECK(after.mapped_regions == 1);
  CHECK(publisher->client().Stats().blocks_published == 4);
}
