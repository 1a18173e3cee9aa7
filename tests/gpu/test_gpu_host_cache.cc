// Blocks of GPU memory in kvmd's host cache: offloaded by a worker's low-priority stream, imported
// by GPUs and by the host.
#include <algorithm>
#include <iostream>
#include <numeric>

#include "tests/gpu/local_region.h"
#include "tests/gpu/market_processes.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using namespace std::chrono_literals;

constexpr std::uint64_t kBlockBytes = 64 << 10;

GpuWorkerOptions Options(const std::string& socket, const std::string& name, std::uint32_t blocks) {
  return PoolOptions(socket, name, blocks, kBlockBytes);
}

// Imports blocks that exporter 1 has overwritten since, by the keys that they had: only the host
// cache can have them. Each is a chain of its own.
class PastImporter {
 public:
  PastImporter(GpuWorker& worker, std::uint32_t exporter_blocks, std::uint64_t seed)
      : worker_(worker), exporter_blocks_(exporter_blocks), random_(seed) {}

  // `newest`: the most rewrites that a block may have had.
  void Round(std::uint32_t tries, std::uint64_t newest) {
    std::vector<PatternBlock> expected;
    std::vector<ImportTicket> tickets;
    for (std::uint32_t i = 0; i < tries; ++i) {
      const auto block = static_cast<std::uint32_t>(random_.Below(exporter_blocks_));
      const Content content = ExporterContent(1, block, 2 * random_.Between(1, newest));
      const Match match = worker_.Find(std::span(&content, 1));
      if (match.empty()) continue;
      const auto slot = static_cast<std::uint32_t>(expected.size());
      Result<ImportTicket> ticket = worker_.client().Import(match, worker_.region(), std::span(&slot, 1));
      KVM_REQUIRE_OK(ticket);
      expected.push_back({slot, content.tag, content.version});
      tickets.push_back(std::move(*ticket));
    }
    std::vector<bool> valid;
    for (ImportTicket& ticket : tickets) {
      KVM_REQUIRE_OK(ticket.Wait(After(30s)));
      valid.push_back(ticket.result().valid == 1);
    }
    const std::vector<bool> wrong = worker_.pattern().Wrong(expected);
    for (std::size_t i = 0; i < valid.size(); ++i) {
      validated_ += valid[i];
      wrong_ += valid[i] && wrong[i];
      rejected_ += !valid[i];
    }
  }

  std::uint64_t validated() const { return validated_; }
  std::uint64_t wrong() const { return wrong_; }
  std::uint64_t rejected() const { return rejected_; }

 private:
  GpuWorker& worker_;
  const std::uint32_t exporter_blocks_;
  Random random_;
  std::uint64_t validated_ = 0, wrong_ = 0, rejected_ = 0;
};

}  // namespace

TEST_CASE("GPU host cache: blocks of every layout are offloaded, and imported once their worker is gone", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "256M", "--host-cache-slab", "4M"});
  RegistryProbe probe(kvmd.socket());
  std::uint64_t held = 0;
  std::uint32_t tag = 1;
  for (const NamedGeometry& layout : EngineLayouts(64)) {
    for (const layout::HandleKind kind : {layout::HandleKind::kCudaVmmFd, layout::HandleKind::kCudaIpc}) {
      INFO(layout.name << " kind " << static_cast<int>(kind));
      const std::vector<Content> contents = Contents(tag, 48);
      tag += 48;
      GpuWorkerOptions options = Options(kvmd.socket(), "publisher-" + std::to_string(tag), 64);
      options.layout = layout;
      options.kind = kind;
      options.checksums = held == 0;  // one of them with
      {
        auto publisher = GpuWorker::Start(options);
        KVM_REQUIRE_OK(publisher);
        KVM_REQUIRE_OK((*publisher)->Publish(contents, 8));
        held += contents.size();
        REQUIRE(StoredEventually(probe, held) == held);
        CHECK((*publisher)->client().Stats().blocks_offloaded == contents.size());
      }
      options.name = "reader";
      options.layout = EngineLayouts(64).front();
      options.kind = layout::HandleKind::kCudaVmmFd;
      auto reader = GpuWorker::Start(options);
      KVM_REQUIRE_OK(reader);
      REQUIRE(Eventually([&] { return (*reader)->Find(contents).size() == contents.size(); }));
      ImportOptions verify;
      verify.verify = true;
      const GpuImportCheck import = (*reader)->Import((*reader)->Find(contents), contents, 3, verify);
      CHECK(import.valid == contents.size());
      CHECK(import.wrong == 0);
      CHECK((*reader)->client().Stats().blocks_from_host_cache == contents.size());
    }
  }
}

TEST_CASE("GPU host cache: blocks are stored before they are overwritten, and their owner imports them again", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd({"--host-cache", "64M", "--host-cache-admission", "reuse"});
  RegistryProbe probe(kvmd.socket());
  auto worker = GpuWorker::Start(Options(kvmd.socket(), "worker", 128));
  KVM_REQUIRE_OK(worker);
  const std::vector<Content> first = Contents(100, 64), second = Contents(500, 64);
  KVM_REQUIRE_OK((*worker)->Publish(first, 0));
  std::vector<std::uint32_t> blocks(64);
  std::iota(blocks.begin(), blocks.end(), 0u);
  const Result<std::size_t> offloaded = (*worker)->region().OffloadBeforeReuse(blocks, After(30s));
  KVM_REQUIRE_OK(offloaded);
  CHECK(*offloaded == 64);
  KVM_REQUIRE_OK((*worker)->Publish(second, 0));
  REQUIRE(Eventually([&] { return (*worker)->Find(first).size() == 64; }));
  const GpuImportCheck import = (*worker)->Import((*worker)->Find(first), first, 64);
  CHECK(import.valid == 64);
  CHECK(import.wrong == 0);
  CHECK((*worker)->CountWrong(second, 0) == 0);
}

TEST_CASE("GPU host cache: a host region imports blocks that a GPU has offloaded", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "64M"});
  RegistryProbe probe(kvmd.socket());
  const std::vector<Content> contents = Contents(100, 100);
  {
    auto publisher = GpuWorker::Start(Options(kvmd.socket(), "publisher", 128));
    KVM_REQUIRE_OK(publisher);
    KVM_REQUIRE_OK((*publisher)->Publish(contents, 0));
    REQUIRE(StoredEventually(probe, 100) == 100);
  }
  GpuWorkerOptions options = Options(kvmd.socket(), "reader", 128);
  options.kind = layout::HandleKind::kHostMemfd;
  auto reader = GpuWorker::Start(options);
  KVM_REQUIRE_OK(reader);
  REQUIRE(Eventually([&] { return (*reader)->Find(contents).size() == 100; }));
  const Match match = (*reader)->Find(contents);
  std::vector<std::uint32_t> blocks(100);
  std::iota(blocks.begin(), blocks.end(), 0u);
  Result<ImportTicket> ticket = (*reader)->client().Import(match, (*reader)->region(), blocks);
  KVM_REQUIRE_OK(ticket);
  KVM_REQUIRE_OK(ticket->Wait(After(30s)));
  REQUIRE(ticket->result().valid == 100);
  std::size_t wrong = 0;
  for (std::uint32_t block = 0; block < 100; ++block) {
    const std::byte* const bytes = (*reader)->region().BlockData(block);
    for (std::uint64_t i = 0; i < kBlockBytes / 8; ++i) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes + 8 * i, 8);
      if (word != PatternWord(contents[block].tag, contents[block].version, i)) {
        ++wrong;
        break;
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("GPU host cache: no wrong block while it is rewritten at full speed, evicts, and its writers are killed", "[gpu]") {
  KVM_NEED_GPUS(1);
  // Room for a quarter of what one exporter holds, so that it evicts all the time.
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "64M", "--host-cache-slab", "4M", "--host-cache-policy", "lru"});
  RegistryProbe probe(kvmd.socket());
  auto reader = GpuWorker::Start(Options(kvmd.socket(), "soak", 64));
  KVM_REQUIRE_OK(reader);
  ExporterOptions exporter_options;
  exporter_options.socket = kvmd.socket();
  exporter_options.number = 1;
  exporter_options.blocks = 4096;
  exporter_options.block_bytes = kBlockBytes;
  PastImporter past(**reader, exporter_options.blocks, 7);
  for (int kill = 0; kill < 6; ++kill) {
    ChildProcess exporter = StartExporter(exporter_options);
    REQUIRE(exporter.ReadLine(60s) == "ready");
    const auto until = std::chrono::steady_clock::now() + 2s;
    while (std::chrono::steady_clock::now() < until) past.Round(64, 400);
    exporter.Kill();
    for (int i = 0; i < 50; ++i) past.Round(64, 400);
  }
  const kvmwire::HostCacheDomain cache = HostCacheOf(probe);
  std::cout << "host cache on a GPU: " << past.validated() << " blocks validated, " << past.wrong() << " wrong, " << past.rejected()
            << " rejected; " << cache.stored() << " offloaded, " << cache.evicted() << " evicted" << std::endl;
  CHECK(past.wrong() == 0);
  CHECK(past.validated() > 0);
  CHECK(cache.evicted() > 0);
  CHECK(cache.stored() > 4096);
}
