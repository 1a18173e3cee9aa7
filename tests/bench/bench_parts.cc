// Key derivation, generations, geometry checks, copy plans and the host copy loop.
#include <benchmark/benchmark.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "cuda/copy_plan.h"
#include "cuda/memory_backend.h"
#include "kvm/block_key.h"
#include "kvm/model_spec.h"
#include "proto/shm/generation_table.h"
#include "tests/support/data/geometries.h"
#include "tests/support/data/model_specs.h"

namespace {

using namespace kvm;

// 8,192 tokens in blocks of 16.
void BM_KeysOf8192Tokens(benchmark::State& state) {
  std::vector<std::uint32_t> tokens(8192);
  std::iota(tokens.begin(), tokens.end(), 0u);
  const Fingerprint fingerprint = test::LlamaSpec().ComputeFingerprint();
  std::vector<BlockKey> keys;
  for (auto _ : state) {
    keys.clear();
    KeyChain(fingerprint, {}).Extend(tokens, 16, keys);
    benchmark::DoNotOptimize(keys.data());
  }
  state.SetItemsProcessed(state.iterations() * 512);
}
BENCHMARK(BM_KeysOf8192Tokens)->Unit(benchmark::kMicrosecond);

void BM_RetractBlock(benchmark::State& state) {
  constexpr std::uint32_t kBlocks = 4096;
  std::vector<std::uint64_t> words(GenerationTableBytes(kBlocks) / 8);
  GenerationWriter writer = GenerationWriter::Format(std::as_writable_bytes(std::span(words)), kBlocks);
  std::uint32_t block = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(writer.BeginWrite(block));
    block = (block + 1) % kBlocks;
  }
}
BENCHMARK(BM_RetractBlock);

// 61 layers of K and V tensors to one cross-layer tensor.
void BM_MakeCopyPlan(benchmark::State& state) {
  Geometry source{1000, {}};
  for (std::uint32_t tensor = 0; tensor < 122; ++tensor) source.parts.push_back({tensor, 0, 4096, 4096, 1, 0});
  const Geometry destination = Geometry::Contiguous(1000, 122 * 4096);
  for (auto _ : state) benchmark::DoNotOptimize(MakeCopyPlan(source, destination));
}
BENCHMARK(BM_MakeCopyPlan)->Unit(benchmark::kMicrosecond);

// The most chunks a block may have, all interleaved in one segment: the overlap check's worst case.
void BM_ValidateGeometry(benchmark::State& state) {
  constexpr std::uint64_t kChunks = Geometry::kMaxChunksPerBlock;
  const Geometry geometry{1000, {{0, 0, 64, 64 * kChunks, kChunks, 64}}};
  const std::uint64_t segments[] = {1000 * 64 * kChunks};
  for (auto _ : state) {
    if (!geometry.Validate(segments)) state.SkipWithError("a valid geometry was refused");
  }
}
BENCHMARK(BM_ValidateGeometry)->Unit(benchmark::kMillisecond);

// 256 blocks of 64 KiB, per block of the source a copy; against one memcpy of the same bytes.
constexpr std::uint32_t kCopyBlocks = 256;
constexpr std::uint64_t kCopyBlockBytes = 64 * 1024;

void BM_HostImport(benchmark::State& state) {
  const std::shared_ptr<MemoryBackend> backend = MakeHostBackend();
  const std::uint64_t sizes[] = {kCopyBlocks * kCopyBlockBytes};
  auto source = *backend->Allocate("bench", sizes), destination = *backend->Allocate("bench", sizes);
  auto peer = *backend->View(*source);
  const Geometry geometry = Geometry::Contiguous(kCopyBlocks, kCopyBlockBytes);
  const CopyPlan plan = *MakeCopyPlan(geometry, geometry);
  std::vector<std::uint64_t> words(GenerationTableBytes(kCopyBlocks) / 8);
  GenerationWriter writer = GenerationWriter::Format(std::as_writable_bytes(std::span(words)), kCopyBlocks);
  PeerGenerations generations;
  generations.reader = *GenerationReader::Open(std::as_bytes(std::span(words)), kCopyBlocks);
  ImportRequest request;
  request.destination = destination.get();
  request.runs = {{peer.get(), &generations, &plan, 0, kCopyBlocks}};
  for (std::uint32_t block = 0; block < kCopyBlocks; ++block) {
    static_cast<void>(writer.FinishWrite(block, writer.BeginWrite(block)));
    request.blocks.push_back({block, (block * 37) % kCopyBlocks, 2});
  }
  for (auto _ : state) {
    const std::unique_ptr<ImportJob> job = backend->Import(request);
    if (job->statuses().back() != BlockStatus::kValid) state.SkipWithError("import failed");
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kCopyBlocks * kCopyBlockBytes));
}
BENCHMARK(BM_HostImport)->Unit(benchmark::kMillisecond);

void BM_Memcpy(benchmark::State& state) {
  const std::shared_ptr<MemoryBackend> backend = MakeHostBackend();
  const std::uint64_t sizes[] = {kCopyBlocks * kCopyBlockBytes};
  auto source = *backend->Allocate("bench", sizes), destination = *backend->Allocate("bench", sizes);
  for (auto _ : state) {
    std::memcpy(destination->SegmentData(0), source->SegmentData(0), sizes[0]);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(sizes[0]));
}
BENCHMARK(BM_Memcpy)->Unit(benchmark::kMillisecond);

}  // namespace
