// The kernels themselves, each variant forced: every layout against a walk on the CPU, with poison
// around.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/kernels/copy_kernels.h"
#include "cuda/plan/transfer_plan.h"
#include "tests/gpu/exporter.h"
#include "tests/gpu/local_region.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;
using test::MustSucceed;

constexpr unsigned char kPoison = 0xA5;

// Memory of the current device with random bytes or poison, and what it should hold.
struct Segments {
  std::vector<std::byte*> device;
  std::vector<std::vector<std::byte>> host;

  Segments(const std::vector<std::uint64_t>& sizes, test::Random* random, std::size_t skew) {
    for (const std::uint64_t bytes : sizes) {
      host.emplace_back(bytes, std::byte{kPoison});
      if (random != nullptr) {
        for (std::byte& byte : host.back()) byte = static_cast<std::byte>(random->Next());
      }
      std::byte* base = nullptr;
      MustSucceed(cudaMalloc(reinterpret_cast<void**>(&base), bytes + 64), "cudaMalloc");
      allocations_.push_back(base);
      device.push_back(base + skew);
      MustSucceed(cudaMemcpy(base + skew, host.back().data(), bytes, cudaMemcpyHostToDevice), "upload");
    }
  }
  ~Segments() {
    for (std::byte* base : allocations_) cudaFree(base);
  }
  Segments(const Segments&) = delete;
  Segments& operator=(const Segments&) = delete;

  std::vector<std::byte> Download(std::size_t segment) const {
    std::vector<std::byte> bytes(host[segment].size());
    MustSucceed(cudaMemcpy(bytes.data(), device[segment], bytes.size(), cudaMemcpyDeviceToHost), "download");
    return bytes;
  }

 private:
  std::vector<std::byte*> allocations_;
};

// Copies one block on the CPU, byte by byte, as geometry.h defines it.
void CopyOnCpu(const Geometry& from, const Segments& source, std::uint32_t source_block, const Geometry& to, Segments& destination,
               std::uint32_t destination_block) {
  std::vector<std::byte> bytes;
  for (const GeometryPart& part : from.parts) {
    for (std::uint32_t r = 0; r < part.count; ++r) {
      const std::byte* at = source.host[part.segment].data() + part.offset + r * part.repeat_stride + source_block * part.block_stride;
      bytes.insert(bytes.end(), at, at + part.chunk_bytes);
    }
  }
  const std::byte* at = bytes.data();
  for (const GeometryPart& part : to.parts) {
    for (std::uint32_t r = 0; r < part.count; ++r) {
      std::memcpy(destination.host[part.segment].data() + part.offset + r * part.repeat_stride + destination_block * part.block_stride, at,
                  part.chunk_bytes);
      at += part.chunk_bytes;
    }
  }
}

std::vector<KernelChoice> Variants(std::uint32_t bulk_shared_bytes) {
  std::vector<KernelChoice> out;
  for (const unsigned word : {16u, 8u, 4u, 1u}) {
    for (const unsigned threads : {256u, 1024u}) out.push_back({KernelKind::kVector, word, 256 * word, 3, threads, 0, 0});
  }
  if (bulk_shared_bytes == 0) return out;
  for (const std::uint32_t unit : {128u, 384u, 4096u}) {
    for (const unsigned rings : {1u, 2u}) out.push_back({KernelKind::kBulk, 16, unit, 3, 512, rings, 6});
  }
  return out;
}

TEST_CASE("Copy kernels: every variant moves every layout's blocks and nothing else", "[gpu]") {
  KVM_NEED_GPUS(1);
  MustSucceed(cudaSetDevice(0), "cudaSetDevice");
  std::uint32_t shared = 0;
  MustSucceed(PrepareCopyKernels(shared), "PrepareCopyKernels");
  constexpr std::uint32_t kBlocks = 40;
  test::Random random(5);
  std::uint32_t *arrivals = nullptr, *done = nullptr;
  MustSucceed(cudaMalloc(reinterpret_cast<void**>(&arrivals), 4), "cudaMalloc");
  MustSucceed(cudaMemset(arrivals, 0, 4), "cudaMemset");
  MustSucceed(cudaMallocHost(reinterpret_cast<void**>(&done), 4), "cudaMallocHost");
  std::uint32_t job = 0, combination = 0;
  // A sanitizer makes this very slow: it may look at every nth combination only.
  const char* text = std::getenv("KVM_GPU_TEST_EVERY");
  const std::uint32_t every = text != nullptr ? static_cast<std::uint32_t>(std::max(1, std::atoi(text))) : 1;
  const std::vector<test::NamedGeometry> layouts = test::EngineLayouts(kBlocks);
  for (const test::NamedGeometry& from : layouts) {
    for (const test::NamedGeometry& to : layouts) {
      const Result<CopyPlan> plan = MakeCopyPlan(from.geometry, to.geometry);
      KVM_REQUIRE_OK(plan);
      for (const KernelChoice& variant : Variants(shared)) {
        if (combination++ % every != 0) continue;
        // Narrow words are for memory that isn't aligned: give them some.
        const std::size_t skew = variant.word_bytes % 16;
        Segments source(from.segment_bytes, &random, skew), destination(to.segment_bytes, nullptr, skew);
        std::vector<ImportBlock> blocks;
        for (std::uint32_t i = 0; i < 23; ++i) blocks.push_back({(i * 7) % kBlocks, (i * 3 + 1) % kBlocks, 2});
        const std::vector<const std::byte*> bases(source.device.begin(), source.device.end());
        TransferRun run{&*plan, bases, 0, 0, MemoryPath::kSameDevice, &source, 0, blocks.size()};
        CopyLimits limits;
        limits.forced = variant;
        TransferPlan transfer;
        KVM_REQUIRE_OK(PlanTransfer({&run, 1}, blocks, destination.device, limits, transfer));
        CopyArgs args;
        args.group_count = transfer.group_count;
        args.piece_count = transfer.piece_count;
        args.pair_count = transfer.pair_count;
        args.item_count = transfer.item_count;
        args.unit_bytes = variant.unit_bytes;
        args.report = ReportBy::kDoneWord;
        args.done_value = ++job;
        args.done = done;
        args.arrivals = arrivals;
        void* table = nullptr;
        const bool upload = job % 2 == 0;  // both ways of handing the table over
        if (upload) {
          MustSucceed(cudaMalloc(&table, transfer.table.size()), "cudaMalloc");
          MustSucceed(cudaMemcpy(table, transfer.table.data(), transfer.table.size(), cudaMemcpyHostToDevice), "table");
        }
        MustSucceed(LaunchCopy(variant, args, transfer.table, table, nullptr), "LaunchCopy");
        MustSucceed(cudaDeviceSynchronize(), "copy");
        if (upload) cudaFree(table);
        INFO(from.name << " to " << to.name << ", kernel " << static_cast<int>(variant.kind) << ", word " << variant.word_bytes << ", unit "
                       << variant.unit_bytes);
        CHECK(*done == job);
        for (const ImportBlock& block : blocks)
          CopyOnCpu(from.geometry, source, block.source_block, to.geometry, destination, block.destination_block);
        for (std::size_t i = 0; i < destination.host.size(); ++i) REQUIRE(destination.Download(i) == destination.host[i]);
      }
    }
  }
  cudaFree(arrivals);
  cudaFreeHost(done);
}

}  // namespace
