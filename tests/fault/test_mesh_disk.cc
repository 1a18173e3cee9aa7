// What may happen to a disk cache: its process is killed at any moment, the disk is full or fails,
// files are damaged. No byte is wrong, and the node goes on.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>

#include "client/mesh/disk/disk_cache.h"
#include "proto/base/random.h"
#include "tests/catch.h"
#include "tests/support/mesh/disk_blocks.h"
#include "tests/support/mesh/mesh_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::DiskBlocks;
using test::DiskReadCheck;
using test::Eventually;
using test::JoinBy;
using test::KvmdProcess;
using test::MeshProcess;
using test::StatusOf;
using test::TempDir;
using test::Worker;

constexpr std::uint32_t kBlocks = 16;  // of a prompt
constexpr std::uint64_t kPrompts = 40;

std::uint64_t BlockBytes(std::uint64_t prompt) { return prompt % 2 == 0 ? 4096 : 20'000; }

mesh::DiskOptions Options(const TempDir& dir) {
  mesh::DiskOptions out;
  out.path = dir / "disk";
  out.limit_bytes = std::uint64_t{4} << 20;
  out.write_bytes_per_s = 0;
  return out;
}

}  // namespace

TEST_CASE("Mesh disk: a process that is killed while it writes leaves records that are all right", "[fault]") {
  const TempDir dir;
  SplitMix random(3);
  std::size_t read = 0;
  for (int round = 0; round < 30; ++round) {
    // A child that opens the cache and writes until it is killed: new blocks, evictions, segments
    // that are removed.
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      Result<std::unique_ptr<mesh::DiskCache>> cache = mesh::DiskCache::Open(Options(dir));
      if (!cache || !(*cache)->Recover(test::kDiskDomain)) ::_exit(1);
      for (std::uint64_t prompt = static_cast<std::uint64_t>(round);; ++prompt) {
        const DiskBlocks blocks(prompt % kPrompts, kBlocks, BlockBytes(prompt));
        if (!(*cache)->Append(blocks.blocks)) ::_exit(2);
      }
    }
    ::usleep(static_cast<useconds_t>(2'000 + random.Below(60'000)));
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    const auto cache = test::OpenDisk(Options(dir));
    CHECK(cache->table().file_bytes() <= Options(dir).limit_bytes);
    for (std::uint64_t prompt = 0; prompt < kPrompts; ++prompt) {
      const DiskReadCheck check = test::ReadDisk(*cache, DiskBlocks(prompt, kBlocks, BlockBytes(prompt)).keys, BlockBytes(prompt));
      CHECK(check.wrong == 0);
      CHECK(check.bad == 0);
      CHECK(check.failed == 0);
      read += check.good;
    }
  }
  CHECK(read > 1000);
}

TEST_CASE("Mesh disk: kvmd-mesh that is killed while it writes brings right blocks when it is back", "[fault]") {
  const TempDir dir;
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  const std::vector<std::string> options{"--disk-path", dir / "disk", "--disk-bytes", "16M", "--disk-write-rate", "0"};
  const auto publisher = test::StartWorker({.socket = kvmd.socket(), .name = "publisher"});
  SplitMix random(5);
  for (int round = 0; round < 8; ++round) {
    MeshProcess mesh(kvmd, "a", {}, {}, options);
    publisher->Publish("r" + std::to_string(round) + ":60", 0);
    KVM_REQUIRE_OK(publisher->Flush());
    // At some point of the writing, which goes on for as long as blocks are new.
    const std::uint64_t enough = random.Below(50);
    REQUIRE(Eventually([&] { return StatusOf(mesh).disk().written_blocks() >= enough; }, 60s));
    mesh.Kill();
  }
  // Without any memory that has them.
  KvmdProcess other({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  MeshProcess mesh(other, "b", {}, {}, options);
  const auto joiner = test::StartWorker({.socket = other.socket(), .name = "joiner"});
  REQUIRE(Eventually([&] { return StatusOf(mesh).disk().state() == "on"; }, 60s));
  std::size_t joined = 0;
  for (int round = 0; round < 8; ++round) {
    const std::string prompt = "r" + std::to_string(round) + ":60";
    joined += joiner->client().JoinCache(joiner->region(), joiner->Keys(prompt), JoinBy(mesh, 20s)).blocks;
    CHECK(joiner->FindAndImport(prompt, 0).wrong == 0);
  }
  CHECK(joined > 60);
  CHECK(StatusOf(mesh).disk().bad_records() == 0);
}

namespace {

// Two nodes with a disk cache at the first one, which has "p:20,q:30" and "r:8" from before it was
// started anew.
class DamagedDisk {
  const TempDir dir_;
  const std::vector<std::string> options_{"--disk-path", dir_ / "disk", "--disk-bytes", "16M", "--disk-write-rate", "0"};
  KvmdProcess kvmd_a_, kvmd_b_;

 public:
  explicit DamagedDisk(const std::vector<std::string>& environment = {}) {
    {
      KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
      MeshProcess mesh(kvmd, "a", {}, {}, options_);
      const auto publisher = test::StartWorker({.socket = kvmd.socket(), .name = "publisher"});
      publisher->Publish("p:20,q:30", 0);
      publisher->Publish("r:8", 50);
      KVM_REQUIRE_OK(publisher->Flush());
      REQUIRE(Eventually([&] { return StatusOf(mesh).disk().blocks() == 58; }, 60s));
    }
    a.emplace(kvmd_a_, "a", std::vector<std::string>(), environment, options_);
    b.emplace(kvmd_b_, "b", std::vector<std::string>{a->as_peer()}, environment);
    REQUIRE(Eventually([&] { return StatusOf(*b).peers(0).disk_keys() == 58; }, 60s));
    joiner = test::StartWorker({.socket = kvmd_b_.socket(), .name = "joiner"});
  }

  // Other bytes in the middle of the block, wherever its record lies.
  bool Damage(const BlockKey& key) const {
    for (const std::filesystem::path& path : Segments()) {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      std::vector<std::byte> page(mesh::kDiskPage);
      for (std::uint64_t at = mesh::kDiskPage; file.seekg(static_cast<std::streamoff>(at)).read(reinterpret_cast<char*>(page.data()), 4096);
           at += mesh::RecordBytes(4096)) {
        const Result<mesh::RecordHeader> header = mesh::DecodeRecordHeader(page);
        if (!header || header->key != key) continue;
        file.seekp(static_cast<std::streamoff>(at + mesh::kDiskPage + 1234));
        file.put('\x5a').put('\x5b').put('\x5c');
        return file.good();
      }
    }
    return false;
  }
  void TearSegments() const {
    for (const std::filesystem::path& path : Segments()) std::filesystem::resize_file(path, 4096 + 100);
  }
  JoinOutcome Join(const std::string& prompt) {
    return joiner->client().JoinCache(joiner->region(), joiner->Keys(prompt), JoinBy(*b, 20s));
  }

  std::optional<MeshProcess> a, b;
  std::unique_ptr<Worker> joiner;

 private:
  std::vector<std::filesystem::path> Segments() const {
    std::vector<std::filesystem::path> out;
    for (const auto& each : std::filesystem::directory_iterator(dir_ / "disk"))
      if (each.path().filename().string().starts_with("segment-")) out.push_back(each.path());
    return out;
  }
};

}  // namespace

TEST_CASE("Mesh disk: records that are damaged while peers are served are not there, and no byte is wrong", "[fault]") {
  DamagedDisk nodes;
  REQUIRE(nodes.Damage(nodes.joiner->Keys("p:20,q:30")[20]));
  JoinOutcome joined = nodes.Join("p:20,q:30");
  INFO(joined.reason);
  CHECK(joined.blocks == 20);
  CHECK(joined.reason.find("not there") != std::string::npos);
  CHECK(StatusOf(*nodes.a).disk().bad_records() == 1);
  nodes.TearSegments();
  joined = nodes.Join("r:8");
  CHECK(joined.blocks == 0);
  CHECK(joined.reason.find("not there") != std::string::npos);
  CHECK(StatusOf(*nodes.a).disk().bad_records() > 1);
  CHECK(nodes.joiner->FindAndImport("p:20,q:30", 0).wrong == 0);
  CHECK(nodes.joiner->FindAndImport("p:20,q:30", 0).valid == 20);
  CHECK(nodes.a->running());
}

#if defined(KVM_FAULT_POINTS)
TEST_CASE("Mesh disk: without checksums at both nodes a damaged record is found as a wrong block (the control)", "[fault]") {
  DamagedDisk nodes({"KVM_FAULT_SWITCH=blocks_without_checksum"});
  REQUIRE(nodes.Damage(nodes.joiner->Keys("p:20,q:30")[20]));
  const JoinOutcome joined = nodes.Join("p:20,q:30");
  INFO(joined.reason);
  CHECK(joined.blocks == 50);
  CHECK(nodes.joiner->FindAndImport("p:20,q:30", 0).wrong == 1);
}
#endif

TEST_CASE("Mesh disk: a full disk pauses the disk cache with a reason, and the node serves and reads on", "[fault]") {
  const TempDir dir;
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  // Of the mesh process, which inherits it: no file may grow beyond some records.
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  rlimit little = before;
  little.rlim_cur = 4096 + 10 * 8192;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &little) == 0);
  MeshProcess mesh(kvmd, "a", {}, {}, {"--disk-path", dir / "disk", "--disk-bytes", "64M", "--disk-write-rate", "0"});
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto worker = test::StartWorker({.socket = kvmd.socket(), .name = "worker"});
  worker->Publish("p:40", 0);
  KVM_REQUIRE_OK(worker->Flush());
  REQUIRE(Eventually([&] { return StatusOf(mesh).disk().state() == "read only"; }, 60s));
  const kvmmesh::Status status = StatusOf(mesh);
  CHECK(status.disk().reason().find("File too large") != std::string::npos);
  CHECK(mesh.running());
  const auto joined = worker->client().JoinCache(worker->region(), worker->Keys("p:40"), JoinBy(mesh, 20s));
  CHECK(joined.blocks == 40);
}
