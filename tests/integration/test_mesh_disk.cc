// The disk cache of a node: blocks of the host cache are written to it, and joined from it when no
// memory has them any more.
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <iostream>
#include <span>

#include "tests/catch.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
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
using test::Number;
using test::RegistryProbe;
using test::Sandbox;
using test::StatusOf;
using test::StoredEventually;
using test::TempDir;
using test::Text;
using test::Worker;

constexpr std::uint64_t kBlock = 4096;  // WorkerOptions::block_bytes

std::vector<std::string> HostCache() { return {"--orphan-ttl-s", "0", "--host-cache", "4M"}; }

std::vector<std::string> DiskAt(const TempDir& dir, const std::string& bytes = "16M") {
  return {"--disk-path", dir / "disk", "--disk-bytes", bytes, "--disk-write-rate", "0"};
}

// Publishes, and waits until the disk has all of it. `before`: blocks that it had.
void PublishToDisk(const KvmdProcess& kvmd, const MeshProcess& mesh, const std::string& prompt, std::uint64_t blocks,
                   std::uint64_t before = 0) {
  const auto publisher = Start(kvmd, "publisher");
  publisher->Publish(prompt, 0);
  KVM_REQUIRE_OK(publisher->Flush());
  REQUIRE(Eventually([&] { return StatusOf(mesh).disk().blocks() >= before + blocks; }, 60s));
}

JoinOutcome Join(Worker& worker, const MeshProcess& mesh, const std::string& prompt, std::chrono::milliseconds within = 20s) {
  return worker.client().JoinCache(worker.region(), worker.Keys(prompt), JoinBy(mesh, within));
}

void CheckImport(Worker& worker, const std::string& prompt, std::size_t blocks) {
  const ImportCheck import = worker.FindAndImport(prompt, 0);
  CHECK(import.valid == blocks);
  CHECK(import.wrong == 0);
}

}  // namespace

TEST_CASE("Mesh disk: blocks of the host cache are joined from the disk after every process was started anew", "[integration]") {
  for (const char* io : {"auto", "pread"}) {
    INFO(io);
    const TempDir dir;
    std::vector<std::string> options = DiskAt(dir);
    options.insert(options.end(), {"--disk-io", io});
    {
      KvmdProcess kvmd(HostCache());
      MeshProcess mesh(kvmd, "a", {}, {}, options);
      PublishToDisk(kvmd, mesh, "p:30", 30);
      CHECK(mesh.Stop().clean());
    }
    KvmdProcess kvmd(HostCache());
    MeshProcess mesh(kvmd, "a", {}, {}, options);
    const auto joiner = Start(kvmd, "joiner");
    REQUIRE(joiner->Find("p:30").empty());
    REQUIRE(Eventually([&] { return StatusOf(mesh).disk().state() == "on"; }, 60s));
    const JoinOutcome joined = Join(*joiner, mesh, "p:30");
    INFO(joined.reason);
    CHECK(joined.blocks == 30);
    CHECK(joined.fetched == 30);
    CheckImport(*joiner, "p:30", 30);
    const kvmmesh::DiskStatus disk = StatusOf(mesh).disk();
    CHECK(disk.read_blocks() == 30);
    CHECK(disk.read_bytes() == 30 * kBlock);
    CHECK(disk.bytes_per_s() > 0);
    CHECK(disk.bad_records() == 0);
  }
}

TEST_CASE("Mesh disk: blocks that were evicted from the host cache are joined from the disk", "[integration]") {
  const TempDir dir;
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "1M", "--host-cache-slab", "256K"});
  MeshProcess mesh(kvmd, "a", {}, {}, DiskAt(dir));
  // Each time all slots of the worker's, and together more than the host cache has.
  std::uint64_t blocks = 0;
  for (int prompt = 0; prompt < 8; ++prompt, blocks += 60) PublishToDisk(kvmd, mesh, "p" + std::to_string(prompt) + ":60", 60, blocks);
  const auto joiner = Start(kvmd, "joiner");
  std::size_t evicted = 0;
  for (int prompt = 0; prompt < 8; ++prompt) {
    const std::string text = "p" + std::to_string(prompt) + ":60";
    evicted += 60 - joiner->Find(text).size();
    const JoinOutcome joined = Join(*joiner, mesh, text);
    INFO(text << ": " << joined.reason);
    CHECK(joined.blocks == 60);
    CheckImport(*joiner, text, 60);
  }
  CHECK(evicted >= 480 - 256);
}

TEST_CASE("Mesh disk: copies for the disk are no uses of the host cache's blocks", "[integration]") {
  const TempDir dir;
  KvmdProcess kvmd(HostCache());
  RegistryProbe probe(kvmd.socket());
  MeshProcess mesh(kvmd, "a", {}, {}, DiskAt(dir));
  PublishToDisk(kvmd, mesh, "p:30", 30);
  const auto reader = Start(kvmd, "reader");
  // A report that came first would be counted by the time that this one is.
  CHECK(reader->FindAndImport("p:10", 0).valid == 10);
  REQUIRE(Eventually([&] { return test::HostCacheOf(probe).hits() >= 10; }));
  CHECK(test::HostCacheOf(probe).hits() == 10);
}

TEST_CASE("Mesh disk: a prefix that only the disk of another node has is joined from there", "[integration]") {
  const TempDir dir;
  {
    KvmdProcess kvmd(HostCache());
    MeshProcess mesh(kvmd, "a", {}, {}, DiskAt(dir));
    PublishToDisk(kvmd, mesh, "p:30", 30);
  }
  // No worker of node a has come back yet.
  KvmdProcess kvmd_a(HostCache()), kvmd_b;
  MeshProcess a(kvmd_a, "a", {}, {}, DiskAt(dir));
  MeshProcess b(kvmd_b, "b", {a.as_peer()});
  REQUIRE(Eventually([&] { return StatusOf(b).peers(0).disk_keys() == 30; }, 60s));
  const auto joiner = Start(kvmd_b, "joiner");
  const Sandbox sandbox;
  std::string keys;
  for (const BlockKey& key : joiner->Keys("p:30")) keys += (keys.empty() ? "" : ",") + key.ToHex();
  const auto run = [&](const std::string& arguments) {
    const Sandbox::Output output =
        sandbox.Run("--json --socket " + kvmd_b.socket() + " --timeout-ms 20000 mesh " + arguments + " --mesh-socket " + b.socket());
    INFO(output.err);
    REQUIRE(output.code == 0);
    return output.Json();
  };
  const boost::json::value plan = run("explain --keys " + keys);
  CHECK(Number(plan.at("sources").at(0), "blocks") == 30);
  CHECK(Number(plan.at("sources").at(0), "disk_blocks") == 30);
  CHECK(Text(plan.at("sources").at(0), "verdict") == "it seems to have 30 more blocks (30 of them from its disk)");
  CHECK(Number(run("find --keys " + keys).at("nodes").at(0), "disk_blocks") == 30);
  const JoinOutcome joined = Join(*joiner, b, "p:30");
  INFO(joined.reason);
  CHECK(joined.blocks == 30);
  CHECK(joined.fetched == 30);
  CheckImport(*joiner, "p:30", 30);
  CHECK(StatusOf(a).served_from_disk() == 30);
  CHECK(StatusOf(a).disk().read_blocks() == 30);
  CHECK(StatusOf(b).peers(0).disk_bytes_per_s() > 0);
  CHECK(StatusOf(b).peers(0).bytes_per_s() == 0);  // of its memory nothing is known
}

TEST_CASE("Mesh disk: of a prefix that a node has in part in memory only the rest is read from its disk", "[integration]") {
  const TempDir dir;
  KvmdProcess kvmd_a(HostCache()), kvmd_b;
  MeshProcess a(kvmd_a, "a", {}, {}, DiskAt(dir));
  PublishToDisk(kvmd_a, a, "p:30", 30);
  a.Stop();
  KvmdProcess second(HostCache());
  MeshProcess again(second, "a", {}, {}, DiskAt(dir));
  const auto publisher = Start(second, "publisher");
  publisher->Publish("p:10", 0);
  KVM_REQUIRE_OK(publisher->Flush());
  MeshProcess b(kvmd_b, "b", {again.as_peer()});
  REQUIRE(Eventually([&] { return StatusOf(b).peers(0).disk_keys() == 30 && StatusOf(b).peers(0).keys() == 10; }, 60s));
  const auto joiner = Start(kvmd_b, "joiner");
  const JoinOutcome joined = Join(*joiner, b, "p:30");
  INFO(joined.reason);
  CHECK(joined.blocks == 30);
  CheckImport(*joiner, "p:30", 30);
  CHECK(StatusOf(again).served_blocks() == 30);
  CHECK(StatusOf(again).served_from_disk() == 20);
}

TEST_CASE("Mesh disk: blocks are computed if that is faster than the disk is, and kvctl says so", "[integration]") {
  const TempDir dir;
  {
    KvmdProcess kvmd(HostCache());
    MeshProcess mesh(kvmd, "a", {}, {}, DiskAt(dir));
    PublishToDisk(kvmd, mesh, "p:10,q:10", 20);
  }
  KvmdProcess kvmd(HostCache());
  MeshProcess mesh(kvmd, "a", {}, {}, DiskAt(dir));
  const auto joiner = Start(kvmd, "joiner");
  REQUIRE(Eventually([&] { return StatusOf(mesh).disk().state() == "on"; }, 60s));
  REQUIRE(Join(*joiner, mesh, "p:10").fetched == 10);  // not measured before
  JoinOptions options = JoinBy(mesh, 20s);
  options.prefill_tokens_per_s = 1e12;
  const JoinOutcome joined = joiner->client().JoinCache(joiner->region(), joiner->Keys("p:10,q:10"), options);
  CHECK(joined.fetched == 0);
  CHECK(joined.reason.find("disk: fetching 10 blocks would take") == 0);
  const Sandbox sandbox;
  std::string keys;
  for (const BlockKey& key : joiner->Keys("p:10,q:10")) keys += (keys.empty() ? "" : ",") + key.ToHex();
  const auto run = [&](const std::string& arguments) {
    const Sandbox::Output output =
        sandbox.Run("--json --socket " + kvmd.socket() + " --timeout-ms 20000 mesh " + arguments + " --mesh-socket " + mesh.socket());
    INFO(output.err);
    REQUIRE(output.code == 0);
    return output.Json();
  };
  const boost::json::value plan = run("explain --keys " + keys);
  CHECK(Text(plan.at("sources").at(0), "node") == "disk");
  CHECK(Number(plan.at("sources").at(0), "blocks") == 20);
  CHECK(plan.at("sources").at(0).at("chosen").as_bool());
  CHECK(Number(run("find --keys " + keys), "disk") == 20);
  const boost::json::value recent = run("explain").at("joins");
  CHECK(Text(recent.at(recent.as_array().size() - 1), "sources") == "disk");
  const boost::json::value disk = run("status").at("disk");
  CHECK(Text(disk, "state") == "on");
  CHECK(Number(disk, "blocks") == 20);
  CHECK(Number(disk, "read_blocks") == 10);
  const Sandbox::Output text = sandbox.Run("mesh status --mesh-socket " + mesh.socket());
  CHECK(text.out.find("disk cache") != std::string::npos);
}

TEST_CASE("Mesh disk: a second process on the directory, and a directory that is a symlink, are refused", "[integration]") {
  const TempDir dir;
  KvmdProcess kvmd(HostCache());
  MeshProcess first(kvmd, "a", {}, {}, DiskAt(dir));
  std::filesystem::create_directory_symlink(dir / "disk", dir / "link");
  const auto start = [&](const std::string& path, const std::string& log) {
    test::ChildProcess second(
        {test::MeshBinary(), "--node", "b", "--socket", kvmd.socket(), "--mesh-socket", kvmd.dir().path().string() + "/second.sock",
         "--listen", "127.0.0.1:0", "--disk-path", path, "--disk-bytes", "1M"},
        log);
    const auto end = second.Wait(60s);
    REQUIRE(end);
    CHECK(end->code == 1);
    return test::ReadFile(log);
  };
  CHECK(start(dir / "disk", dir / "log1").find("another process uses") != std::string::npos);
  CHECK(start(dir / "link", dir / "log2").find("is a symlink") != std::string::npos);
  CHECK(first.running());
}
