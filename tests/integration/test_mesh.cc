// Two nodes on one machine: what a worker of one has published, a worker of the other one joins.
#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::ImportCheck;
using test::JoinBy;
using test::KvmdProcess;
using test::MeshProcess;
using test::Worker;

std::unique_ptr<Worker> Start(const KvmdProcess& kvmd, const std::string& name, std::uint64_t block_bytes = 4096) {
  return test::StartWorker({.socket = kvmd.socket(), .name = name, .block_bytes = block_bytes});
}

std::unique_ptr<Worker> StartVerifying(const KvmdProcess& kvmd, const std::string& name, std::uint32_t one_in) {
  return test::StartWorker({.socket = kvmd.socket(), .name = name, .verify_one_in = one_in});
}

void PublishAndFlush(Worker& worker, const std::string& prompt, std::uint32_t first_block = 0) {
  worker.Publish(prompt, first_block);
  KVM_REQUIRE_OK(worker.Flush());
}

// Joins again and again until the summaries have told of `blocks` blocks; the last outcome, with
// all that was fetched.
JoinOutcome JoinEventually(Worker& worker, const MeshProcess& mesh, const std::string& prompt, std::size_t blocks) {
  JoinOutcome last;
  std::size_t fetched = 0;
  Eventually([&] {
    last = worker.client().JoinCache(worker.region(), worker.Keys(prompt), JoinBy(mesh, 5s));
    fetched += last.fetched;
    return last.blocks >= blocks;
  });
  INFO("reason: " << last.reason);
  CHECK(last.blocks == blocks);
  last.fetched = fetched;
  return last;
}

// Kilobytes of the mappings of this process whose names contain `name`: of all pages, and of those
// that are mapped.
struct MappedKb {
  std::uint64_t all = 0, mapped = 0;
};
MappedKb MappedOf(const MeshProcess& mesh, const std::string& name) {
  MappedKb out;
  std::ifstream maps("/proc/" + std::to_string(mesh.pid()) + "/smaps");
  bool counts = false;
  for (std::string line; std::getline(maps, line);) {
    const std::string word = line.substr(0, line.find(' '));
    if (word.find(':') == std::string::npos) counts = line.find(name) != std::string::npos;
    if (counts && word == "Size:") out.all += std::stoull(line.substr(word.size()));
    if (counts && word == "Rss:") out.mapped += std::stoull(line.substr(word.size()));
  }
  return out;
}

}  // namespace

TEST_CASE("Mesh: pages for blocks are mapped before blocks need them", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a", {}, {}, {"--staging-size", "24M"});
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()}, {}, {"--pool-size", "40M"});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:4");
  JoinEventually(*joiner, mesh_b, "p:4", 4);
  const auto all_mapped = [](const MeshProcess& mesh, const std::string& name, std::uint64_t bytes) {
    return Eventually(
        [&] {
          const MappedKb pages = MappedOf(mesh, name);
          return pages.all >= bytes >> 10 && pages.mapped >= bytes >> 10;
        },
        60s);
  };
  CHECK(all_mapped(mesh_a, "mesh-staging-", std::uint64_t{24} << 20));
  CHECK(all_mapped(mesh_b, "mesh-landing-", std::uint64_t{40} << 20));
}

TEST_CASE("Mesh: a worker joins what a worker of another node has published, byte for byte", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:16");
  REQUIRE(joiner->Find("p:16").empty());
  const JoinOutcome joined = JoinEventually(*joiner, mesh_b, "p:16", 16);
  CHECK(joined.fetched == 16);
  CHECK(joined.reason.empty());
  const ImportCheck import = joiner->FindAndImport("p:16", 8);
  CHECK(import.valid == 16);
  CHECK(import.wrong == 0);
}

TEST_CASE("Mesh: the sample of checksums is compared at both nodes", "[integration]") {
  constexpr std::uint32_t kOneIn = 4;
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a", {}, {}, {"--verify-one-in", std::to_string(kOneIn)});
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()}, {}, {"--verify-one-in", std::to_string(kOneIn)});
  const auto publisher = StartVerifying(kvmd_a, "publisher", kOneIn), joiner = StartVerifying(kvmd_b, "joiner", kOneIn);
  PublishAndFlush(*publisher, "p:24");
  const std::vector<BlockKey> keys = joiner->Keys("p:24");
  const auto sampled = [&](std::size_t first) {
    return std::count_if(keys.begin() + static_cast<std::ptrdiff_t>(first), keys.end(),
                         [](const BlockKey& key) { return InSample(key, kOneIn); });
  };
  REQUIRE(sampled(0) > 0);
  JoinEventually(*joiner, mesh_b, "p:24", 24);
  CHECK(joiner->FindAndImport("p:24", 8).valid == 24);
  CHECK(joiner->client().Stats().blocks_verified == static_cast<std::uint64_t>(sampled(0)));

  // A block of the second prompt is damaged at its publisher: the sending node refuses it.
  PublishAndFlush(*publisher, "q:8", 24);
  const std::vector<BlockKey> damaged_keys = joiner->Keys("q:8");
  const auto damaged = static_cast<std::size_t>(
      std::find_if(damaged_keys.begin(), damaged_keys.end(), [](const BlockKey& key) { return InSample(key, kOneIn); }) -
      damaged_keys.begin());
  REQUIRE(damaged < damaged_keys.size());
  publisher->region().BlockData(24 + static_cast<std::uint32_t>(damaged))[100] ^= std::byte{1};
  JoinEventually(*joiner, mesh_b, "q:8", damaged);
  CHECK(joiner->client().JoinCache(joiner->region(), damaged_keys, JoinBy(mesh_b, 1s)).blocks == damaged);
}

TEST_CASE("Mesh: blocks that have been joined are found by every worker of the node, without another join", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:8");
  JoinEventually(*joiner, mesh_b, "p:8", 8);
  mesh_a.Kill();
  const auto other = Start(kvmd_b, "other");
  const ImportCheck import = other->FindAndImport("p:8", 0);
  CHECK(import.valid == 8);
  CHECK(import.wrong == 0);
}

TEST_CASE("Mesh: a join fetches only what the node lacks of a prefix", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:12");
  PublishAndFlush(*joiner, "p:5");
  const JoinOutcome joined = JoinEventually(*joiner, mesh_b, "p:12", 12);
  CHECK(joined.fetched == 7);
  const ImportCheck import = joiner->FindAndImport("p:12", 20);
  CHECK(import.valid == 12);
  CHECK(import.wrong == 0);
}

TEST_CASE("Mesh: a prefix that goes on differently is joined up to the difference", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:9,x:3");
  const JoinOutcome joined = JoinEventually(*joiner, mesh_b, "p:9,y:3", 9);
  CHECK(joined.fetched == 9);
  CHECK_FALSE(joined.reason.empty());
}

TEST_CASE("Mesh: without a mesh process a join answers with what is here, and says why there is no more", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker");
  PublishAndFlush(*worker, "p:3");
  JoinOptions options;
  options.mesh_socket = kvmd.dir().path().string() + "/no.sock";
  const JoinOutcome joined = worker->client().JoinCache(worker->region(), worker->Keys("p:6"), options);
  CHECK(joined.blocks == 3);
  CHECK(joined.fetched == 0);
  CHECK(joined.reason.find("no kvmd-mesh") != std::string::npos);
}

TEST_CASE("Mesh: a join of blocks that no node has is a shorter prefix, not an error", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto joiner = Start(kvmd_b, "joiner");
  const JoinOutcome joined = joiner->client().JoinCache(joiner->region(), joiner->Keys("nowhere:6"), JoinBy(mesh_b, 5s));
  CHECK(joined.blocks == 0);
  CHECK_FALSE(joined.reason.empty());
}

TEST_CASE("Mesh: nothing is fetched if fewer blocks than wanted can be expected", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:4,q:1");
  JoinEventually(*joiner, mesh_b, "p:4,q:1", 5);  // the summaries have told of all
  PublishAndFlush(*publisher, "r:4", 8);
  JoinOptions options = JoinBy(mesh_b, 5s);
  options.min_blocks = 6;
  CHECK(joiner->client().JoinCache(joiner->region(), joiner->Keys("p:4,z:4"), options).fetched == 0);
  CHECK(joiner->client().JoinCache(joiner->region(), joiner->Keys("r:8"), options).fetched == 0);
  JoinEventually(*joiner, mesh_b, "r:8", 4);
}

TEST_CASE("Mesh: a worker's hint makes a peer a source before its summary has told of the blocks", "[integration]") {
  const char* hint = GENERATE("a", "127.0.0.1");
  INFO(hint);
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()}, {}, {"--pull-interval-ms", "600000"});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:4");
  const std::vector<BlockKey> keys = joiner->Keys("p:4");
  JoinOptions options = JoinBy(mesh_b, 5s);
  options.source_hint = "127.0.0.2";
  CHECK(joiner->client().JoinCache(joiner->region(), keys, options).fetched == 0);
  options.source_hint = hint;
  JoinOutcome joined;
  // Node a has to have looked at its own registry, so that it knows which blocks it may copy.
  CHECK(Eventually([&] {
    options.deadline = After(5s);
    joined = joiner->client().JoinCache(joiner->region(), keys, options);
    return joined.blocks == 4;
  }));
}

TEST_CASE("Mesh: more blocks than the pool has are joined as far as it has room", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()}, {}, {"--pool-size", "40K"});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:32");
  const JoinOutcome joined = JoinEventually(*joiner, mesh_b, "p:32", 10);
  CHECK(joined.fetched == 10);
  PublishAndFlush(*publisher, "q:6", 40);
  JoinEventually(*joiner, mesh_b, "q:6", 6);
  const ImportCheck import = joiner->FindAndImport("q:6", 0);
  CHECK(import.valid == 6);
  CHECK(import.wrong == 0);
}

TEST_CASE("Mesh: a second mesh process on the same socket does not start", "[integration]") {
  KvmdProcess kvmd;
  MeshProcess first(kvmd, "a");
  test::ChildProcess second(
      {test::MeshBinary(), "--node", "a", "--socket", kvmd.socket(), "--mesh-socket", first.socket(), "--listen", "127.0.0.1:0"},
      kvmd.dir().path().string() + "/second.log");
  const auto end = second.Wait(10s);
  REQUIRE(end);
  CHECK(end->code == 1);
  CHECK(first.running());
}

TEST_CASE("Mesh: SIGTERM ends the process in an orderly way, and its blocks leave the node", "[integration]") {
  KvmdProcess kvmd_a, kvmd_b;
  MeshProcess mesh_a(kvmd_a, "a");
  MeshProcess mesh_b(kvmd_b, "b", {mesh_a.as_peer()});
  const auto publisher = Start(kvmd_a, "publisher"), joiner = Start(kvmd_b, "joiner");
  PublishAndFlush(*publisher, "p:8");
  JoinEventually(*joiner, mesh_b, "p:8", 8);
  CHECK(mesh_b.Stop().clean());
  CHECK(Eventually([&] { return joiner->Find("p:8").empty(); }));
}
