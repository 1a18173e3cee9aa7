// Imports from another process, on the same GPU and on another one, for both kinds of handle; the
// soak of the validation protocol; what becomes of mappings when the owner dies.
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "cuda/import/waves.h"
#include "cuda/memory/device_memory.h"
#include "tests/gpu/blocked_stream.h"
#include "tests/gpu/exporter.h"
#include "tests/gpu/local_region.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/random.h"
#include "tests/support/data/standing_generations.h"
#include "tests/support/process/child_main.h"

extern char** environ;

namespace {

using namespace kvm;
using namespace kvm::test;
using layout::HandleKind;
using Clock = std::chrono::steady_clock;

const ChildMain exporter_main("gpu_exporter",
                              [](const std::vector<std::string>& arguments) { return RunExporter(std::stoi(arguments.at(0))); });

// An importer on `ordinal` with the exporter's region mapped.
struct Peer {
  Peer(int ordinal, const ExportOptions& options) : backend(BackendOf(ordinal)) {
    Result<ExportedRegion> opened = exporter.Open(options);
    KVM_REQUIRE_OK(opened);
    region = std::move(*opened);
    for (const SegmentHandle& segment : region.segments) {
      mapped_from.emplace_back();
      mapped_from.back().handle = segment.handle;
      mapped_from.back().allocation = segment.allocation;
    }
    Result<std::unique_ptr<PeerMemory>> mapped = backend->Map(std::move(region.segments), region.origin);
    KVM_REQUIRE_OK(mapped);
    memory = std::move(*mapped);
    KVM_REQUIRE_OK(backend->AttachGenerations(region.generations));
  }
  ExporterProcess exporter;
  std::shared_ptr<MemoryBackend> backend;
  ExportedRegion region;                   // its segments went into `memory`
  std::vector<SegmentHandle> mapped_from;  // their names
  std::unique_ptr<PeerMemory> memory;
};

ExportOptions Options(int ordinal, HandleKind kind, const NamedGeometry& layout) {
  ExportOptions options;
  options.ordinal = ordinal;
  options.kind = kind;
  options.geometry = layout.geometry;
  options.segment_bytes = layout.segment_bytes;
  return options;
}

// GPU 1 where there is one.
std::vector<int> Importers() {
  std::string why;
  return UsableGpus(why) > 1 ? std::vector<int>{1, 0} : std::vector<int>{0};
}

TEST_CASE("Peer import: both kinds of handle, from this GPU and from another, in every layout", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 32;
  for (const int importer : Importers()) {
    for (const HandleKind kind : {HandleKind::kCudaVmmFd, HandleKind::kCudaIpc}) {
      for (const NamedGeometry& layout : EngineLayouts(kBlocks)) {
        INFO("GPU " << importer << ", kind " << static_cast<int>(kind) << ", " << layout.name);
        ExportOptions options = Options(0, kind, layout);
        options.one_allocation = layout.segment_bytes.size() % 2 == 0;
        Peer peer(importer, options);
        CHECK((peer.memory->path() == MemoryPath::kSameDevice) == (importer == 0));
        const NamedGeometry to = EngineLayouts(kBlocks)[5];
        LocalRegion destination(peer.backend, to.geometry, to.segment_bytes);
        const CopyPlan plan = *MakeCopyPlan(layout.geometry, to.geometry);
        std::vector<ImportBlock> blocks;
        std::vector<PatternBlock> expected;
        for (std::uint32_t i = 0; i < kBlocks; ++i) {
          blocks.push_back({(i * 5) % kBlocks, (i * 3) % kBlocks, 2});
          expected.push_back({(i * 3) % kBlocks, (i * 5) % kBlocks, 2});
        }
        const auto job = peer.backend->Import(RequestOf(*destination.memory, *peer.memory, peer.region.generations, plan, blocks));
        CHECK(AllValid(StatusesOf(*job)));
        Pattern pattern(to.geometry, BasesOf(*destination.memory));
        for (const bool wrong : pattern.Wrong(expected)) REQUIRE_FALSE(wrong);
        // What the owner has rewritten is not taken for what it was.
        peer.exporter.Rewrite({blocks[3].source_block});
        const auto stale = peer.backend->Import(RequestOf(*destination.memory, *peer.memory, peer.region.generations, plan, blocks));
        const std::vector<BlockStatus> statuses = StatusesOf(*stale);
        CHECK(statuses[2] == BlockStatus::kValid);
        CHECK(statuses[3] == BlockStatus::kStale);
        CHECK(statuses[4] == BlockStatus::kBehindFailed);
      }
    }
  }
}

// Child: maps a peer's region on GPU argv[0] and stores to it. A store that must fail leaves the
// context unusable, hence a process of its own. 0: it failed; 1: it worked; 2: the mapping is
// read-write by its own account; 3: no mapping.
int StoreToPeer(int importer) {
  ExporterProcess exporter;
  Result<ExportedRegion> region = exporter.Open(Options(0, HandleKind::kCudaVmmFd, EngineLayouts(32)[0]));
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  if (!region || !devices) return 3;
  MustSucceed(cudaSetDevice(importer), "cudaSetDevice");
  const auto backend = MakeCudaBackend(devices->at(static_cast<std::size_t>(importer)).uuid);
  if (!backend) return 3;
  const auto memory = (*backend)->Map(std::move(region->segments), region->origin);
  if (!memory) return 3;
  if (!(*memory)->read_only()) {
    std::cout << "GPU " << importer << ": " << (*memory)->detail() << std::endl;
    return 2;
  }
  const std::byte* base = dynamic_cast<const CudaPeerMemory&>(**memory).bases()[0];
  cudaError_t error = cudaMemset(const_cast<std::byte*>(base), 0, 4096);
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  std::cout << "GPU " << importer << ": a store to a read-only mapping gives " << cudaGetErrorName(error) << std::endl;
  return error == cudaSuccess ? 1 : 0;
}

const ChildMain store_main("gpu_store_to_peer",
                           [](const std::vector<std::string>& arguments) { return StoreToPeer(std::stoi(arguments.at(0))); });

TEST_CASE("Peer import: a mapping that says read-only refuses stores", "[gpu]") {
  KVM_NEED_GPUS(1);
  for (const int importer : Importers()) {
    const std::string ordinal = std::to_string(importer);
    const char* arguments[] = {"gpu_tests", "--child", "gpu_store_to_peer", ordinal.c_str(), nullptr};
    pid_t child = -1;
    REQUIRE(::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, const_cast<char**>(arguments), environ) == 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    CHECK((WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 2));
  }
}

TEST_CASE("Peer import: one allocation is opened once and closed with its last user", "[gpu]") {
  KVM_NEED_GPUS(1);
  const int importer = Importers()[0];
  const NamedGeometry layout = EngineLayouts(32)[1];
  ExportOptions options = Options(0, HandleKind::kCudaIpc, layout);
  options.one_allocation = true;
  const auto backend = BackendOf(importer);
  ExporterProcess exporter;
  Result<ExportedRegion> region = exporter.Open(options);
  KVM_REQUIRE_OK(region);
  const auto again = [&] {
    std::vector<SegmentHandle> segments;
    for (const SegmentHandle& handle : region->segments) {
      segments.emplace_back();
      segments.back().size_bytes = handle.size_bytes;
      segments.back().handle = handle.handle;
      segments.back().handle_offset = handle.handle_offset;
      segments.back().allocation = handle.allocation;
      segments.back().allocation_bytes = handle.allocation_bytes;
    }
    return segments;
  };
  for (const SegmentHandle& segment : region->segments) CHECK(segment.handle == region->segments[0].handle);
  auto first = backend->Map(again(), region->origin);
  auto second = backend->Map(again(), region->origin);
  KVM_REQUIRE_OK(first);
  KVM_REQUIRE_OK(second);
  const auto base = [](const PeerMemory& memory) { return dynamic_cast<const CudaPeerMemory&>(memory).bases()[0]; };
  CHECK(base(**first) == base(**second));
  first->reset();
  second->reset();
  // A lie about the size is found out.
  std::vector<SegmentHandle> lying = again();
  lying[0].size_bytes = std::uint64_t{1} << 40;
  KVM_CHECK_ERROR(backend->Map(std::move(lying), region->origin), Errc::kInvalidArgument, "leave the exported allocation");
}

TEST_CASE("Peer import: memory that was freed and allocated anew is never taken for the old", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 16;
  constexpr std::uint64_t kBytes = 4 << 20;
  Peer peer(Importers()[0], Options(0, HandleKind::kCudaIpc, {"pool", Geometry::Contiguous(kBlocks, kBytes), {kBlocks * kBytes}}));
  const SegmentHandle before = std::move(peer.mapped_from[0]);
  std::uint64_t allocation = 0;
  const Result<std::string> handle = peer.exporter.Reallocate(allocation);
  KVM_REQUIRE_OK(handle);
  CHECK(allocation != before.allocation);
  std::cout << "a new allocation of the same size has " << (*handle == before.handle ? "the same handle" : "another handle") << std::endl;
  const auto map = [&] {
    std::vector<SegmentHandle> segments(1);
    segments[0].size_bytes = kBlocks * kBytes;
    segments[0].handle = *handle;
    segments[0].allocation = allocation;
    return peer.backend->Map(std::move(segments), peer.region.origin);
  };
  // The old mapping is still there: the same handle must not be opened next to it.
  if (*handle == before.handle) KVM_CHECK_ERROR(map(), Errc::kUnavailable, "still mapped");
  peer.memory.reset();
  const auto again = map();
  KVM_REQUIRE_OK(again);
  LocalRegion destination(peer.backend, Geometry::Contiguous(kBlocks, kBytes), {kBlocks * kBytes});
  const CopyPlan plan = *MakeCopyPlan(destination.geometry, destination.geometry);
  const auto job = peer.backend->Import(RequestOf(*destination.memory, **again, peer.region.generations, plan, {{3, 5, 4}}));
  CHECK(AllValid(StatusesOf(*job)));
  Pattern pattern(destination.geometry, BasesOf(*destination.memory));
  const PatternBlock expected{5, 3, 4};
  CHECK_FALSE(pattern.Wrong({&expected, 1})[0]);
}

TEST_CASE("Peer import: a mapping outlives its owner, and its memory is freed with the mapping", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 64;
  constexpr std::uint64_t kBytes = 4 << 20;
  for (const HandleKind kind : {HandleKind::kCudaVmmFd, HandleKind::kCudaIpc}) {
    const auto free_bytes = [] {
      MustSucceed(cudaSetDevice(0), "cudaSetDevice");
      std::size_t free = 0, total = 0;
      MustSucceed(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
      return free;
    };
    const std::size_t before = free_bytes();
    {
      Peer peer(Importers()[0], Options(0, kind, {"pool", Geometry::Contiguous(kBlocks, kBytes), {kBlocks * kBytes}}));
      LocalRegion destination(peer.backend, Geometry::Contiguous(kBlocks, kBytes), {kBlocks * kBytes});
      peer.exporter.Kill();
      const CopyPlan plan = *MakeCopyPlan(destination.geometry, destination.geometry);
      std::vector<ImportBlock> blocks;
      std::vector<PatternBlock> expected;
      for (std::uint32_t i = 0; i < kBlocks; ++i) {
        blocks.push_back({kBlocks - 1 - i, i, 2});
        expected.push_back({i, kBlocks - 1 - i, 2});
      }
      const auto job = peer.backend->Import(RequestOf(*destination.memory, *peer.memory, peer.region.generations, plan, blocks));
      CHECK(AllValid(StatusesOf(*job)));
      Pattern pattern(destination.geometry, BasesOf(*destination.memory));
      for (const bool wrong : pattern.Wrong(expected)) REQUIRE_FALSE(wrong);
    }
    const auto end = Clock::now() + std::chrono::seconds(1);
    const std::size_t slack = 64 << 20;  // what this process's own pools keep
    while (free_bytes() + slack < before && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK(free_bytes() + slack >= before);
  }
}

struct SoakResult {
  std::uint64_t validated = 0, undetected = 0, caught = 0, rejected = 0, rewritten = 0;
};

// Imports random blocks while the owner rewrites them; compares every block that came out valid.
SoakResult Soak(int importer, HandleKind kind, std::uint64_t block_bytes, double seconds, unsigned max_sms) {
  const auto pool = static_cast<std::uint32_t>(std::clamp<std::uint64_t>((std::uint64_t{2} << 30) / block_bytes, 64, 2048));
  const std::uint32_t batch = block_bytes > (4 << 20) ? 8 : 64;
  const Geometry geometry = Geometry::Contiguous(pool, block_bytes);
  Peer peer(importer, Options(0, kind, {"pool", geometry, {pool * block_bytes}}));
  LocalRegion destination(peer.backend, Geometry::Contiguous(batch, block_bytes), {batch * block_bytes});
  const CopyPlan plan = *MakeCopyPlan(geometry, destination.geometry);
  Pattern pattern(destination.geometry, BasesOf(*destination.memory));
  Random random(static_cast<std::uint64_t>(importer) + 9);
  SoakResult result;
  peer.exporter.StartRewriting();
  const auto begin = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds) {
    // One block per import: a batch would be cut at its first failure.
    std::vector<ImportBlock> blocks;
    std::vector<PatternBlock> expected;
    std::vector<std::unique_ptr<ImportJob>> jobs;
    for (std::uint32_t i = 0; i < batch; ++i) {
      std::uint32_t block = 0;
      Generation generation = 0;
      while (!IsReadable(generation)) {
        block = static_cast<std::uint32_t>(random.Below(pool));
        generation = peer.region.generations.reader.Current(block);
      }
      ImportRequest request = RequestOf(*destination.memory, *peer.memory, peer.region.generations, plan, {{block, i, generation}});
      request.max_sms = max_sms;
      jobs.push_back(peer.backend->Import(std::move(request)));
      expected.push_back({i, block, generation});
    }
    for (const auto& job : jobs) static_cast<void>(StatusesOf(*job));
    const std::vector<bool> wrong = pattern.Wrong(expected);
    for (std::uint32_t i = 0; i < batch; ++i) {
      const bool valid = jobs[i]->statuses()[0] == BlockStatus::kValid;
      result.validated += valid;
      result.undetected += valid && wrong[i];
      result.rejected += !valid;
      result.caught += !valid && wrong[i];
    }
  }
  result.rewritten = peer.exporter.StopRewriting();
  return result;
}

double SoakSeconds() {
  const char* seconds = std::getenv("KVM_GPU_SOAK_SECONDS");
  return seconds != nullptr ? std::atof(seconds) : 2.0;
}

TEST_CASE("Soak: no block that was rewritten meanwhile ever validates", "[gpu]") {
  KVM_NEED_GPUS(1);
  for (const int importer : Importers()) {
    struct Case {
      std::uint64_t block_bytes;
      unsigned max_sms;
    };
    // 16 MiB blocks: the bulk kernel, or the copy engine for the whole block.
    for (const Case& one : {Case{64 << 10, 0}, {1 << 20, 1}, {12 << 20, 2}, {16 << 20, 0}}) {
      const SoakResult result = Soak(importer, HandleKind::kCudaVmmFd, one.block_bytes, SoakSeconds(), one.max_sms);
      std::cout << "soak: importer on GPU " << importer << ", " << (one.block_bytes >> 10) << " KiB blocks: validated " << result.validated
                << ", undetected wrong " << result.undetected << ", rejected " << result.rejected << " (" << result.caught
                << " really wrong), owner rewrote " << result.rewritten << std::endl;
      CHECK(result.undetected == 0);
      CHECK(result.validated > 0);
      CHECK(result.rewritten > 0);
    }
  }
}

// The parts of a long import are validated on a stream of its own, beside the next part's copy.
// Without the event by which that stream waits for its part's copy, this test fails.
TEST_CASE("Peer import: a block rewritten while a long import copies it never validates", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 640, kRewritten = 600, kImports = 150;
  constexpr std::uint64_t kBytes = 1 << 20;
  REQUIRE(Waves::Count(kBlocks) > 1);
  const Geometry geometry = Geometry::Contiguous(kBlocks, kBytes);
  for (const int importer : Importers()) {
    INFO("importer on GPU " << importer);
    Peer peer(importer, Options(0, HandleKind::kCudaVmmFd, {"pool", geometry, {kBlocks * kBytes}}));
    LocalRegion destination(peer.backend, geometry, {kBlocks * kBytes});
    const CopyPlan plan = *MakeCopyPlan(geometry, geometry);
    Pattern pattern(geometry, BasesOf(*destination.memory));
    std::atomic<bool> stop = false;
    std::thread rewriter([&] {
      Random pause(7);
      while (!stop) {
        peer.exporter.Rewrite({kRewritten});
        std::this_thread::sleep_for(std::chrono::microseconds(pause.Below(8000)));
      }
    });
    std::uint32_t valid = 0, stale = 0, wrong = 0;
    for (std::uint32_t round = 0; round < kImports; ++round) {
      std::vector<ImportBlock> blocks;
      for (std::uint32_t i = 0; i < kBlocks; ++i) blocks.push_back({i, kBlocks - 1 - i, 2});
      Generation& generation = blocks[kRewritten].generation;
      do generation = peer.region.generations.reader.Current(kRewritten);
      while (!IsReadable(generation));
      const PatternBlock expected{kBlocks - 1 - kRewritten, kRewritten, generation};
      const auto job = peer.backend->Import(RequestOf(*destination.memory, *peer.memory, peer.region.generations, plan, blocks));
      const bool is_valid = StatusesOf(*job)[kRewritten] == BlockStatus::kValid;
      valid += is_valid;
      stale += !is_valid;
      wrong += is_valid && pattern.Wrong({&expected, 1})[0];
      CHECK(job->statuses()[kRewritten - 1] == BlockStatus::kValid);
    }
    stop = true;
    rewriter.join();
    std::cout << "long imports: importer on GPU " << importer << ": " << valid << " valid, " << stale << " stale" << std::endl;
    CHECK(wrong == 0);
    CHECK(valid > 0);
    CHECK(stale > 0);
  }
}

// Shows that the soak can fail: without the second check it finds wrong blocks.
TEST_CASE("Peer import: a block rewritten between its first check and its copy fails, and is wrong without the second check", "[gpu]") {
  KVM_NEED_GPUS(1);
  constexpr std::uint32_t kBlocks = 8;
  for (const int importer : Importers()) {
    for (const HandleKind kind : {HandleKind::kCudaVmmFd, HandleKind::kCudaIpc}) {
      // Copied by a kernel, by the copy engine.
      for (const std::uint64_t block_bytes : {std::uint64_t{64} << 10, std::uint64_t{16} << 20}) {
        for (const bool checked : {true, false}) {
          INFO("GPU " << importer << ", kind " << static_cast<int>(kind) << ", " << (block_bytes >> 10) << " KiB, checked " << checked);
          const Geometry geometry = Geometry::Contiguous(kBlocks, block_bytes);
          Peer peer(importer, Options(0, kind, {"pool", geometry, {kBlocks * block_bytes}}));
          LocalRegion destination(peer.backend, geometry, {kBlocks * block_bytes});
          Pattern pattern(geometry, BasesOf(*destination.memory));
          const CopyPlan plan = *MakeCopyPlan(geometry, geometry);
          const std::vector<ImportBlock> blocks{{3, 5, 2}};
          StandingGenerations standing(kBlocks, blocks);
          KVM_REQUIRE_OK(peer.backend->AttachGenerations(standing.Get()));
          // From here on nothing is allocated: pinned memory may wait for the whole GPU, the
          // blocked stream too.
          BlockedStream stream(std::chrono::seconds(60));
          ImportRequest request =
              RequestOf(*destination.memory, *peer.memory, checked ? peer.region.generations : standing.Get(), plan, blocks);
          request.stream = stream.handle();
          const auto job = peer.backend->Import(std::move(request));
          CHECK_FALSE(job->Done());
          peer.exporter.Rewrite({3});
          stream.Release();
          CHECK(StatusesOf(*job) == std::vector<BlockStatus>{checked ? BlockStatus::kStale : BlockStatus::kValid});
          const PatternBlock asked_for{5, 3, 2}, written_since{5, 3, 4};
          CHECK(pattern.Wrong({&asked_for, 1})[0]);
          CHECK_FALSE(pattern.Wrong({&written_since, 1})[0]);
        }
      }
    }
  }
}

}  // namespace
