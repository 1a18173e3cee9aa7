// The host cache over processes: what was published is found and imported when its owner has reused
// it, or is gone.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/geometries.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::HostCacheOf;
using test::ImportCheck;
using test::KvmdProcess;
using test::RegistryProbe;
using test::RemoteWorker;
using test::StoredEventually;
using test::Worker;
using test::WorkerOptions;

constexpr std::uint64_t kBlock = 4096;  // WorkerOptions::block_bytes

void PublishAndFlush(Worker& worker, const std::string& prompt, std::uint32_t first_block) {
  worker.Publish(prompt, first_block);
  KVM_REQUIRE_OK(worker.Flush());
}

std::vector<std::uint32_t> Range(std::uint32_t first, std::uint32_t count) {
  std::vector<std::uint32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), first);
  return blocks;
}

ImportCheck ImportEventually(Worker& worker, const std::string& prompt, std::size_t blocks, std::uint32_t first_block) {
  test::Eventually([&] { return worker.Find(prompt).size() >= blocks; });
  return worker.FindAndImport(prompt, first_block);
}

}  // namespace

TEST_CASE("Host cache: blocks of a killed worker are imported from it, byte for byte", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  RegistryProbe probe(kvmd.socket());
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  const auto reader = Start(kvmd, "reader");
  publisher.Publish("a:30", 0);
  REQUIRE(StoredEventually(probe, 30) == 30);
  publisher.Kill();
  // Until the reader has heard of it, it may still import from the dead one's own memory, as long
  // as entries lead there.
  REQUIRE(test::Eventually([&] { return probe.CountSlots() == 30; }));
  const ImportCheck import = ImportEventually(*reader, "a:30", 30, 0);
  CHECK(import.valid == 30);
  CHECK(import.wrong == 0);
  CHECK(reader->client().Stats().blocks_from_host_cache == 30);
  // One that comes later is told of it as well.
  const auto late = Start(kvmd, "late");
  CHECK(late->FindAndImport("a:30", 0).valid == 30);
  CHECK(test::Eventually([&] { return HostCacheOf(probe).hits() == 60; }));
}

TEST_CASE("Host cache: a block stays in it when its owner overwrites it", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  RegistryProbe probe(kvmd.socket());
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:20", 0);
  REQUIRE(StoredEventually(probe, 20) == 20);
  for (std::uint32_t block = 0; block < 20; ++block) publisher->region().Retract(block);
  PublishAndFlush(*publisher, "b:20", 0);
  const ImportCheck import = ImportEventually(*reader, "a:20", 20, 0);
  CHECK(import.valid == 20);
  CHECK(import.wrong == 0);
  // Its owner gets it back from there, too.
  CHECK(publisher->FindAndImport("a:20", 30).valid == 20);
}

TEST_CASE("Host cache: regions of any geometry are offloaded, and imported into any other", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "64M", "--host-cache-slab", "1M"});
  RegistryProbe probe(kvmd.socket());
  std::uint64_t held = 0;
  for (const test::NamedGeometry& layout : test::EngineLayouts(16)) {
    INFO(layout.name);
    WorkerOptions options;
    options.geometry = layout.geometry;
    options.checksums = held == 0;  // one of them with
    const std::string prompt = "g" + std::to_string(held) + ":4";
    {
      const auto publisher = Start(kvmd, "publisher-" + std::to_string(held), options);
      PublishAndFlush(*publisher, prompt, 0);
      held += 4;
      REQUIRE(StoredEventually(probe, held) == held);
    }
    WorkerOptions other;
    other.geometry = test::EngineLayouts(16).front().geometry;
    const auto reader = Start(kvmd, "reader", other);
    const std::vector<BlockKey> keys = reader->Keys(prompt);
    ImportOptions verify;
    verify.verify = true;
    const ImportCheck import = reader->Import(reader->client().Find(keys), keys, 4, verify);
    CHECK(import.valid == 4);
    CHECK(import.wrong == 0);
  }
}

TEST_CASE("Host cache: a full one evicts with every policy, and its blocks can be imported", "[integration]") {
  const auto policy = GENERATE(as<std::string>(), "lru", "s3-fifo", "hit-density");
  INFO(policy);
  constexpr std::uint64_t kSlots = 64;
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", std::to_string(kSlots * kBlock), "--host-cache-policy", policy});
  RegistryProbe probe(kvmd.socket());
  WorkerOptions options;
  options.blocks = 256;
  const auto publisher = Start(kvmd, "publisher", options);
  for (std::uint32_t prompt = 0; prompt < 16; ++prompt) {
    PublishAndFlush(*publisher, "p" + std::to_string(prompt) + ":16", prompt * 16);
    CHECK(test::Eventually([&] { return HostCacheOf(probe).stored() == (prompt + 1) * 16; }));
  }
  const kvmwire::HostCacheDomain status = HostCacheOf(probe);
  INFO("refused " << status.refused() << " expired " << status.expired() << " dropped " << publisher->client().Stats().offloads_dropped
                  << ", refused " << publisher->client().Stats().offloads_refused << ", offloaded "
                  << publisher->client().Stats().blocks_offloaded);
  CHECK(status.blocks() == kSlots);
  CHECK(status.evicted() == 16 * 16 - kSlots);
  CHECK(status.refused() == 0);
  CHECK(status.used_bytes() == kSlots * kBlock);
  publisher->DropClient();
  const auto reader = Start(kvmd, "reader", options);
  std::size_t imported = 0;
  for (std::uint32_t prompt = 0; prompt < 16; ++prompt) {
    const ImportCheck import = reader->FindAndImport("p" + std::to_string(prompt) + ":16", 0);
    CHECK(import.valid == import.matched);
    CHECK(import.wrong == 0);
    imported += import.valid;
  }
  // Prefixes are cut from their ends: what is held can be hit.
  CHECK(imported == kSlots);
}

TEST_CASE("Host cache: admission by second hit takes a block when it is published again", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M", "--host-cache-admission", "second-hit"});
  RegistryProbe probe(kvmd.socket());
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second");
  PublishAndFlush(*first, "a:8,b:8", 0);
  PublishAndFlush(*second, "a:8,c:8", 0);
  REQUIRE(StoredEventually(probe, 8) == 8);
  PublishAndFlush(*first, "d:4", 20);
  first->DropClient();
  second->DropClient();
  const auto reader = Start(kvmd, "reader");
  CHECK(reader->Find("a:8,b:8").size() == 8);
  CHECK(reader->FindAndImport("a:8", 0).wrong == 0);
  CHECK(reader->Find("d:4").empty());
}

TEST_CASE("Host cache: before reuse, a worker offloads what it is about to overwrite", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M", "--host-cache-admission", "reuse"});
  RegistryProbe probe(kvmd.socket());
  const auto publisher = Start(kvmd, "publisher"), reader = Start(kvmd, "reader");
  PublishAndFlush(*publisher, "a:8,b:8", 0);
  const Result<std::size_t> offloaded = publisher->region().OffloadBeforeReuse(Range(0, 8), After(std::chrono::seconds(10)));
  KVM_REQUIRE_OK(offloaded);
  CHECK(*offloaded == 8);
  for (std::uint32_t block = 0; block < 16; ++block) publisher->region().Retract(block);
  const ImportCheck import = ImportEventually(*reader, "a:8", 8, 0);
  CHECK(import.valid == 8);
  CHECK(import.wrong == 0);
  CHECK(reader->Find("a:8,b:8").size() == 8);
  // Once more is no more work, and what is not published can't be offloaded.
  CHECK(publisher->region().OffloadBeforeReuse(Range(0, 8), After(std::chrono::seconds(10))).value() == 0);
  CHECK(HostCacheOf(probe).stored() == 8);
}

TEST_CASE("Host cache: a region is offloaded as its options say", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M"});
  RegistryProbe probe(kvmd.socket());
  WorkerOptions options;
  options.offload = OffloadMode::kNever;
  const auto never = Start(kvmd, "never", options);
  PublishAndFlush(*never, "a:4", 0);
  CHECK(never->region().Offload(Range(0, 4)) == 0);
  options.offload = OffloadMode::kAsked;
  const auto asked = Start(kvmd, "asked", options);
  PublishAndFlush(*asked, "b:8", 0);
  CHECK(asked->region().Offload(Range(2, 3)) == 3);
  REQUIRE(StoredEventually(probe, 3) == 3);
  const auto by_kvmd = Start(kvmd, "auto");
  PublishAndFlush(*by_kvmd, "c:5", 0);
  CHECK(StoredEventually(probe, 8) == 8);
}

TEST_CASE("Host cache: without one, no block is offloaded and no call waits", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker");
  PublishAndFlush(*worker, "a:4", 0);
  CHECK(worker->region().Offload(Range(0, 4)) == 0);
  CHECK(worker->region().OffloadBeforeReuse(Range(0, 4), After(std::chrono::seconds(10))).value() == 0);
  CHECK(worker->client().Stats().offloads_dropped == 0);
}

TEST_CASE("Host cache: a client at its quota evicts its own blocks only", "[integration]") {
  constexpr std::uint64_t kSlots = 16;
  const std::string slab = std::to_string(kSlots * kBlock);
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", std::to_string(8 * kSlots * kBlock), "--host-cache-slab", slab,
                    "--max-host-cache-per-client", slab});
  RegistryProbe probe(kvmd.socket());
  const auto small = Start(kvmd, "small"), large = Start(kvmd, "large");
  PublishAndFlush(*small, "a:16", 0);
  REQUIRE(StoredEventually(probe, 16) == 16);
  for (std::uint32_t prompt = 0; prompt < 4; ++prompt) {
    PublishAndFlush(*large, "p" + std::to_string(prompt) + ":16", (prompt % 4) * 16);
    REQUIRE(test::Eventually([&] { return HostCacheOf(probe).stored() == 16 + (prompt + 1) * 16; }));
  }
  CHECK(HostCacheOf(probe).blocks() == 2 * kSlots);
  const kvmwire::StatusReply clients = probe.Status(true);
  for (const kvmwire::ClientStatus& client : clients.client_list()) {
    if (client.role() == kvmwire::WORKER) CHECK(client.host_cache_bytes() == kSlots * kBlock);
  }
  small->DropClient();
  large->DropClient();
  const auto reader = Start(kvmd, "reader");
  CHECK(reader->Find("a:16").size() == 16);
}

TEST_CASE("Host cache: a domain at its quota takes no memory of another domain", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to run a worker as another user");
  constexpr std::uint64_t kSlots = 16;
  const std::string slab = std::to_string(kSlots * kBlock);
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", std::to_string(8 * kSlots * kBlock), "--host-cache-slab", slab,
                    "--max-host-cache-per-domain", slab});
  RegistryProbe probe(kvmd.socket());
  const auto worker = Start(kvmd, "worker");
  PublishAndFlush(*worker, "a:16", 0);
  REQUIRE(StoredEventually(probe, 16) == 16);
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  RemoteWorker other({.socket = kvmd.socket(), .name = "other"}, 12345);
  other.Publish("a:16", 0);
  other.Publish("b:16", 16);
  const auto others = [&] {
    const kvmwire::StatusReply status = probe.Status();
    for (const kvmwire::DomainStatus& domain : status.domains()) {
      if (domain.name() == "uid-12345") return domain.host_cache();
    }
    return kvmwire::HostCacheDomain();
  };
  CHECK(test::Eventually([&] { return others().stored() == 32; }));
  CHECK(others().bytes() == kSlots * kBlock);
  CHECK(others().blocks() == kSlots);
  worker->DropClient();
  CHECK(Start(kvmd, "reader")->Find("a:16").size() == 16);
}
