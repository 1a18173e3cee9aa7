// GPU memory that outlives its worker: it is imported, adopted without a copy, and reclaimed.
#include <algorithm>
#include <iostream>
#include <numeric>

#include "tests/gpu/local_region.h"
#include "tests/gpu/market_processes.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/supervisor.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using namespace std::chrono_literals;

constexpr std::uint32_t kBlocks = 2048;
constexpr std::uint64_t kBlockBytes = 256 << 10;  // 512 MiB
constexpr std::size_t kSlack = 64 << 20;          // what drivers keep of their own

std::size_t FreeBytes() {
  MustSucceed(cudaSetDevice(0), "cudaSetDevice");
  std::size_t free = 0, total = 0;
  MustSucceed(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

GpuWorkerOptions Options(const std::string& socket, const std::string& name, std::uint32_t blocks) {
  return PoolOptions(socket, name, blocks, kBlockBytes);
}

std::vector<Content> ExporterContents(std::uint32_t count) {
  std::vector<Content> contents;
  for (std::uint32_t block = 0; block < count; ++block) contents.push_back(ExporterContent(1, block, 2));
  return contents;
}

ChildProcess Exporter(const std::string& socket, bool rewrites) {
  ExporterOptions options;
  options.socket = socket;
  options.number = 1;
  options.blocks = kBlocks;
  options.block_bytes = kBlockBytes;
  options.rewrites = rewrites;
  ChildProcess exporter = StartExporter(options);
  REQUIRE(exporter.ReadLine(60s) == "ready");
  return exporter;
}

TEST_CASE("GPU orphans: a killed worker's blocks can still be imported, and a new worker adopts its pool", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  auto reader = GpuWorker::Start(Options(kvmd.socket(), "reader", 64));
  KVM_REQUIRE_OK(reader);
  const std::size_t before = FreeBytes();
  {
    ChildProcess exporter = Exporter(kvmd.socket(), false);
    exporter.Kill();
  }
  const std::vector<Content> all = ExporterContents(kBlocks), some = ExporterContents(64);
  REQUIRE(Eventually([&] { return (*reader)->Find(some).size() == 64; }));
  const Match held = (*reader)->Find(some);
  GpuImportCheck import = (*reader)->Import(held, some, 0);
  CHECK(import.valid == 64);
  CHECK(import.wrong == 0);
  // The dead one's memory is still there
  CHECK(FreeBytes() + kBlocks * kBlockBytes <= before + kSlack);

  {
    GpuWorkerOptions options = Options(kvmd.socket(), "exporter-1", kBlocks);
    options.adopt = true;
    const auto start = std::chrono::steady_clock::now();
    auto adopter = GpuWorker::Start(options);
    KVM_REQUIRE_OK(adopter);
    std::cout << "adoption of " << kBlocks << " blocks of " << (kBlockBytes >> 10) << " KiB on a GPU, with connecting: "
              << std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count() << " us"
              << std::endl;
    REQUIRE((*adopter)->adopted().size() == kBlocks);
    CHECK((*adopter)->CountWrong(all, 0) == 0);
    CHECK(FreeBytes() + kBlocks * kBlockBytes + kSlack >= before);  // once, not twice
    // An import of a match from before the adoption notices what the adopting worker rewrites.
    KVM_REQUIRE_OK((*adopter)->Publish(Contents(7000, 1), 9));
    import = (*reader)->Import(held, some, 0);
    CHECK(import.valid == 9);
    CHECK(import.wrong == 0);
    REQUIRE(Eventually([&] { return (*reader)->Find(Contents(7000, 1)).size() == 1; }));
    CHECK((*reader)->Import((*reader)->Find(Contents(7000, 1)), Contents(7000, 1), 0).valid == 1);
  }
  CHECK(Eventually([&] { return FreeBytes() + kSlack >= before; }));
}

TEST_CASE("GPU orphans: killed while it rewrites at full speed, no wrong block is imported or adopted", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  GpuWorkerOptions options = Options(kvmd.socket(), "soak", 64);
  auto reader = GpuWorker::Start(options);
  KVM_REQUIRE_OK(reader);
  RandomImporter importer(**reader, 5);
  for (int round = 0; round < 5; ++round) {
    ChildProcess exporter = Exporter(kvmd.socket(), true);
    for (int i = 0; i < 20; ++i) importer.Round(64);
    exporter.Kill();
    for (int i = 0; i < 20; ++i) importer.Round(64);
    options = Options(kvmd.socket(), "exporter-1", kBlocks);
    options.adopt = true;
    auto adopter = GpuWorker::Start(options);
    KVM_REQUIRE_OK(adopter);
    CHECK((*adopter)->adopted().size() + 64 >= kBlocks);  // all but those that it was writing
    std::size_t wrong = 0;
    for (const AdoptedBlock& block : (*adopter)->adopted()) {
      const Content content = ExporterContent(1, block.block, (*adopter)->region().CurrentGeneration(block.block));
      CHECK(KeyOf(content) == block.key);
      wrong += (*adopter)->CountWrong(std::span(&content, 1), block.block);
    }
    CHECK(wrong == 0);
  }
  CHECK(importer.counts().wrong == 0);
  CHECK(importer.counts().validated > 0);
}

TEST_CASE("GPU orphans: memory of dead workers is freed for a worker that needs it, and on request", "[gpu]") {
  KVM_NEED_GPUS(1);
  KvmdProcess kvmd;
  auto reader = GpuWorker::Start(Options(kvmd.socket(), "reader", 64));
  KVM_REQUIRE_OK(reader);
  const std::size_t before = FreeBytes();
  Exporter(kvmd.socket(), false).Kill();
  REQUIRE(Eventually([&] { return (*reader)->Find(ExporterContents(8)).size() == 8; }));
  SECTION("on request") {
    REQUIRE(Eventually([&] {
      const Result<ReclaimedMemory> reclaimed =
          (*reader)->client().ReclaimOrphans({.device = UuidOfOrdinal(0), .name = {}, .min_age = {}}, After(10s));
      return reclaimed && reclaimed->regions == 1 && reclaimed->still_mapped == 0;
    }));
    CHECK(FreeBytes() + kSlack >= before);
  }
  SECTION("when a device is full") {
    // More than is free beside the orphan.
    const auto blocks = static_cast<std::uint32_t>((before - kBlocks * kBlockBytes / 2) / kBlockBytes);
    GpuWorkerOptions options = Options(kvmd.socket(), "large", blocks);
    auto large = GpuWorker::Start(options);
    KVM_REQUIRE_OK(large);
    CHECK((*reader)->Find(ExporterContents(8)).empty());
  }
}

TEST_CASE("GPU orphans: after the death of a worker and of kvmd, a new worker adopts the pool", "[gpu]") {
  KVM_NEED_GPUS(1);
  Supervisor kvmd;
  ChildProcess exporter = Exporter(kvmd.socket(), false);
  kvmd.Kill();
  exporter.Kill();
  kvmd.Start();
  auto reader = GpuWorker::Start(Options(kvmd.socket(), "reader", 64));
  KVM_REQUIRE_OK(reader);
  const std::vector<Content> some = ExporterContents(64);
  REQUIRE(Eventually([&] { return (*reader)->Find(some).size() == 64; }));
  const GpuImportCheck import = (*reader)->Import((*reader)->Find(some), some, 0);
  CHECK(import.valid == 64);
  CHECK(import.wrong == 0);
  GpuWorkerOptions options = Options(kvmd.socket(), "exporter-1", kBlocks);
  options.adopt = true;
  auto adopter = GpuWorker::Start(options);
  KVM_REQUIRE_OK(adopter);
  CHECK((*adopter)->adopted().size() == kBlocks);
  CHECK((*adopter)->CountWrong(ExporterContents(kBlocks), 0) == 0);
}

}  // namespace
