// The GPU marketplace under fire: owners that rewrite at full speed, and processes that are killed
// anywhere.
//
// KVM_GPU_SOAK_BLOCKS: blocks to validate per soak (default 100,000); KVM_GPU_KILLS: processes to
// kill (default 6).
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "tests/gpu/local_region.h"
#include "tests/gpu/market_processes.h"
#include "tests/support/kvmd/kvmd_process.h"

namespace {

using namespace kvm;
using namespace kvm::test;
using namespace std::chrono_literals;
using layout::HandleKind;
using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kBatch = 64;

std::uint64_t FromEnvironment(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::strtoull(value, nullptr, 10) : otherwise;
}

std::size_t FreeBytes(int ordinal) {
  MustSucceed(cudaSetDevice(ordinal), "cudaSetDevice");
  std::size_t free = 0, total = 0;
  MustSucceed(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

int Gpus() {
  std::string why;
  return std::min(UsableGpus(why), 2);
}

Result<std::unique_ptr<GpuWorker>> StartReader(const std::string& socket, int gpu, std::uint64_t block_bytes) {
  GpuWorkerOptions options;
  options.socket = socket;
  options.name = "soak-" + std::to_string(gpu);
  options.ordinal = gpu;
  options.layout = {"pool", Geometry::Contiguous(kBatch, block_bytes), {kBatch * block_bytes}};
  return GpuWorker::Start(options);
}

// One importer on each GPU, in threads, until each has validated `blocks`; at most `limit`.
std::vector<ImporterCounts> Soak(const std::string& socket, std::uint64_t blocks, std::chrono::seconds limit, std::uint64_t block_bytes,
                                 unsigned max_sms) {
  std::vector<ImporterCounts> counts(static_cast<std::size_t>(Gpus()));
  std::vector<std::thread> threads;
  for (int gpu = 0; gpu < Gpus(); ++gpu) {
    threads.emplace_back([&, gpu] {
      Result<std::unique_ptr<GpuWorker>> worker = StartReader(socket, gpu, block_bytes);
      if (!worker) return;
      RandomImporter importer(**worker, static_cast<std::uint64_t>(gpu) + 1);
      ImportOptions import_options;
      import_options.max_sms = max_sms;
      const auto end = Clock::now() + limit;
      while (Clock::now() < end && importer.counts().validated < blocks) importer.Round(kBatch, import_options);
      counts[static_cast<std::size_t>(gpu)] = importer.counts();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return counts;
}

ChildProcess Exporter(const KvmdProcess& kvmd, std::uint32_t number, HandleKind kind, std::uint64_t block_bytes) {
  ExporterOptions options;
  options.socket = kvmd.socket();
  options.number = number;
  options.kind = kind;
  options.blocks = static_cast<std::uint32_t>(std::min<std::uint64_t>(2048, (std::uint64_t{1} << 30) / block_bytes));
  options.block_bytes = block_bytes;
  ChildProcess exporter = StartExporter(options);
  REQUIRE(exporter.ReadLine(60s) == "ready");
  return exporter;
}

TEST_CASE("GPU market soak: no block that was rewritten meanwhile ever validates", "[gpu]") {
  KVM_NEED_GPUS(1);
  const std::uint64_t target = FromEnvironment("KVM_GPU_SOAK_BLOCKS", 100'000);
  KvmdProcess kvmd;
  struct Case {
    HandleKind kind;
    std::uint64_t block_bytes;
    unsigned max_sms;
    unsigned share;  // of the target, in tenths
  };
  std::uint32_t number = 0;
  for (const Case& one : {Case{HandleKind::kCudaVmmFd, 16 << 10, 0, 4}, Case{HandleKind::kCudaIpc, 64 << 10, 16, 5},
                          Case{HandleKind::kCudaVmmFd, 1 << 20, 2, 1}}) {
    ChildProcess exporter = Exporter(kvmd, ++number, one.kind, one.block_bytes);
    const auto counts = Soak(kvmd.socket(), target * one.share / 10, 120s, one.block_bytes, one.max_sms);
    for (std::size_t gpu = 0; gpu < counts.size(); ++gpu) {
      std::cout << "market soak: importer on GPU " << gpu << ", " << (one.block_bytes >> 10) << " KiB blocks, kind "
                << static_cast<int>(one.kind) << ": validated " << counts[gpu].validated << ", undetected wrong " << counts[gpu].wrong
                << ", rejected " << counts[gpu].rejected << " (" << counts[gpu].caught << " really wrong)" << std::endl;
      CHECK(counts[gpu].wrong == 0);
      CHECK(counts[gpu].validated > 0);
    }
  }
}

// So that the soak can fail: what it would find if the library did not look again.
TEST_CASE("GPU market: a block rewritten between its first check and its copy fails, and is wrong without the second check", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint64_t kBlockBytes = 1 << 20;
  KvmdProcess kvmd;
  ChildProcess exporter = Exporter(kvmd, 1, HandleKind::kCudaVmmFd, kBlockBytes);
  for (int gpu = 0; gpu < Gpus(); ++gpu) {
    auto worker = StartReader(kvmd.socket(), gpu, kBlockBytes);
    KVM_REQUIRE_OK(worker);
    MustSucceed(cudaSetDevice(gpu), "cudaSetDevice");
    RandomImporter checked(**worker, 1), unchecked(**worker, 2);
    REQUIRE(Eventually([&] { return checked.Round(kBatch) && checked.counts().validated > 0; }));
    const ImporterCounts before = checked.counts();
    REQUIRE(Eventually([&] { return checked.RoundAcrossRewrite(kBatch, true); }));
    CHECK(checked.counts().validated == before.validated);
    CHECK(checked.counts().caught > before.caught);
    CHECK(checked.counts().wrong == 0);
    REQUIRE(Eventually([&] { return unchecked.RoundAcrossRewrite(kBatch, false); }));
    std::cout << "market without checks: importer on GPU " << gpu << ": " << unchecked.counts().wrong << " wrong of "
              << unchecked.counts().validated << std::endl;
    CHECK(unchecked.counts().wrong > 0);
  }
}

TEST_CASE("GPU market: a killed owner's memory is freed, though importers had it mapped", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint64_t kBlockBytes = 4 << 20;
  constexpr std::uint32_t kBlocks = 1024;
  constexpr std::size_t kSlack = 64 << 20;  // what drivers keep of their own
  KvmdProcess kvmd({"--orphan-ttl-s", "0"});
  GpuWorkerOptions options;
  options.socket = kvmd.socket();
  options.name = "reader";
  options.ordinal = Gpus() - 1;
  options.layout = {"pool", Geometry::Contiguous(16, kBlockBytes), {16 * kBlockBytes}};
  auto reader = GpuWorker::Start(options);
  KVM_REQUIRE_OK(reader);
  std::uint32_t number = 0;
  for (const HandleKind kind : {HandleKind::kCudaIpc, HandleKind::kCudaVmmFd}) {
    const std::size_t before = FreeBytes(0);
    ExporterOptions exporter_options;
    exporter_options.socket = kvmd.socket();
    exporter_options.number = ++number;
    exporter_options.kind = kind;
    exporter_options.blocks = kBlocks;
    exporter_options.block_bytes = kBlockBytes;
    exporter_options.rewrites = false;
    ChildProcess exporter = StartExporter(exporter_options);
    REQUIRE(exporter.ReadLine(60s) == "ready");
    std::vector<Content> contents;
    for (std::uint32_t block = 0; block < 16; ++block) contents.push_back(ExporterContent(number, block, 2));
    REQUIRE(Eventually([&] { return (*reader)->Find(contents).size() == 16; }));
    const Match held = (*reader)->Find(contents);  // a match keeps no memory
    CHECK((*reader)->Import(held, contents, 0).valid == 16);
    CHECK(FreeBytes(0) + kBlocks * kBlockBytes <= before);
    const auto killed = Clock::now();
    exporter.Kill();
    const bool back = Eventually([&] { return FreeBytes(0) + kSlack >= before; });
    std::cout << "GPU memory of a killed owner, kind " << static_cast<int>(kind) << ", back after "
              << std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - killed).count() << " ms" << std::endl;
    CHECK(back);
    CHECK((*reader)->client().Stats().mapped_regions == 0);
    CHECK((*reader)->Import(held, contents, 0).valid == 0);
    CHECK((*reader)->Find(contents).empty());
  }
}

TEST_CASE("GPU market: exporters and importers killed at any step leave no wrong byte, no memory and no mapping", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::size_t kSlack = 64 << 20;
  const std::uint64_t kills = FromEnvironment("KVM_GPU_KILLS", 6);
  KvmdProcess kvmd({"--orphan-ttl-s", "0"});
  const int gpus = Gpus();
  GpuWorkerOptions options;
  options.socket = kvmd.socket();
  options.name = "survivor";
  options.ordinal = gpus - 1;
  options.layout = {"pool", Geometry::Contiguous(kBatch, 64 << 10), {kBatch * (64 << 10)}};
  auto survivor = GpuWorker::Start(options);
  KVM_REQUIRE_OK(survivor);
  std::vector<std::size_t> before;
  for (int gpu = 0; gpu < gpus; ++gpu) before.push_back(FreeBytes(gpu));
  MustSucceed(cudaSetDevice(options.ordinal), "cudaSetDevice");
  const int fds = kvmd.SettledFds();

  std::uint32_t number = 0;
  const auto start = [&](std::size_t seat) {
    ++number;
    if (seat >= 4) return StartImporter(kvmd.socket(), number, static_cast<int>(seat) % gpus);
    ExporterOptions exporter;
    exporter.socket = kvmd.socket();
    exporter.number = number;
    exporter.ordinal = static_cast<int>(seat) % gpus;
    exporter.kind = seat < 2 ? HandleKind::kCudaIpc : HandleKind::kCudaVmmFd;
    exporter.blocks = 512;
    return StartExporter(exporter);
  };
  std::vector<ChildProcess> children;
  for (std::size_t seat = 0; seat < 6; ++seat) children.push_back(start(seat));
  for (ChildProcess& child : children) REQUIRE(child.ReadLine(60s) == "ready");
  RandomImporter importer(**survivor, 5);
  Random random(11);
  std::uint64_t died_by_themselves = 0;
  std::vector<bool> replaced(children.size());
  for (std::uint64_t kill = 0; kill < kills; ++kill) {
    const auto until = Clock::now() + std::chrono::milliseconds(random.Below(600));
    do {
      importer.Round(kBatch);
    } while (Clock::now() < until);
    const std::size_t seat = static_cast<std::size_t>(random.Below(children.size()));
    died_by_themselves += !children[seat].running();  // wrong bytes in an importer, or a crash
    children[seat].Kill();
    children[seat] = start(seat);
    replaced[seat] = true;
  }
  for (std::size_t seat = 0; seat < children.size(); ++seat) {
    // The others have said that they are ready at the start.
    if (replaced[seat]) static_cast<void>(children[seat].ReadLine(60s));
    died_by_themselves += !children[seat].running();
  }
  std::cout << "killed " << kills << " processes; survivor validated " << importer.counts().validated << ", wrong "
            << importer.counts().wrong << ", rejected " << importer.counts().rejected << std::endl;
  CHECK(importer.counts().wrong == 0);
  CHECK(importer.counts().validated > 0);
  CHECK(died_by_themselves == 0);
  for (ChildProcess& child : children) child.Kill();
  for (int gpu = 0; gpu < gpus; ++gpu) {
    INFO("GPU " << gpu);
    CHECK(Eventually([&] { return FreeBytes(gpu) + kSlack >= before[static_cast<std::size_t>(gpu)]; }));
  }
  CHECK(Eventually([&] { return (*survivor)->client().Stats().mapped_regions == 0; }));
  CHECK(Eventually([&] { return kvmd.OpenFds() <= fds; }));
}

}  // namespace
