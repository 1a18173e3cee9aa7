#include "kvm/copy_baselines.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "cuda/topology/copy_timer.h"

namespace kvm {
namespace {

// The source and destination of each chunk.
struct Chunks {
  std::vector<const void*> from;
  std::vector<void*> to;
};

Chunks ScatteredChunks(const CopyTimer& timer, std::uint64_t chunk_bytes) {
  std::vector<std::uint64_t> from(timer.bytes() / chunk_bytes), to(from.size());
  std::iota(from.begin(), from.end(), 0);
  std::iota(to.begin(), to.end(), 0);
  std::mt19937_64 random(1);
  std::shuffle(from.begin(), from.end(), random);
  std::shuffle(to.begin(), to.end(), random);
  Chunks chunks;
  for (std::size_t i = 0; i < from.size(); ++i) {
    chunks.from.push_back(timer.source() + from[i] * chunk_bytes);
    chunks.to.push_back(timer.destination() + to[i] * chunk_bytes);
  }
  return chunks;
}

cudaError_t QueueEach(const Chunks& chunks, std::uint64_t chunk_bytes, cudaStream_t stream) {
  for (std::size_t i = 0; i < chunks.from.size(); ++i) {
    const cudaError_t error = cudaMemcpyAsync(chunks.to[i], chunks.from[i], chunk_bytes, cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

Result<std::vector<double>> TimeBatch(CopyTimer& timer, [[maybe_unused]] const CopyBaseline& baseline) {
#if CUDART_VERSION >= 13000
  Chunks chunks = ScatteredChunks(timer, baseline.chunk_bytes);
  std::vector<std::size_t> sizes(chunks.from.size(), baseline.chunk_bytes);
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first = 0;
  return timer.Time(baseline.rounds, CopyTimer::Clock::kHost, [&](cudaStream_t stream) {
    return cudaMemcpyBatchAsync(chunks.to.data(), chunks.from.data(), sizes.data(), sizes.size(), &attributes, &first, 1, stream);
  });
#else
  static_cast<void>(timer);
  return MakeError(Errc::kUnsupported, "cudaMemcpyBatchAsync: built with a CUDA toolkit before 13.0");
#endif
}

}  // namespace

Result<std::vector<double>> MeasureCopy(const CopyBaseline& baseline) {
  if (baseline.bytes == 0 || baseline.chunk_bytes == 0 || baseline.bytes % baseline.chunk_bytes != 0 || baseline.rounds == 0) {
    return MakeError(Errc::kInvalidArgument, "measuring a copy: bytes have to be a multiple of chunk_bytes, rounds at least 1");
  }
  auto importer = CudaDevice::Open(baseline.importer);
  if (!importer) return importer.error();
  std::shared_ptr<const CudaDevice> owner;
  if (baseline.owner != kHostMemory) {
    auto opened = CudaDevice::Open(baseline.owner);
    if (!opened) return opened.error();
    owner = std::move(*opened);
  }
  Result<std::unique_ptr<CopyTimer>> timer = CopyTimer::Create(std::move(*importer), std::move(owner), baseline.bytes);
  if (!timer) return timer.error();
  constexpr auto kHost = CopyTimer::Clock::kHost;
  switch (baseline.call) {
    case BaselineCall::kContiguous:
      return (*timer)->Time(baseline.rounds, kHost, [&](cudaStream_t stream) { return (*timer)->QueueContiguous(baseline.bytes, stream); });
    case BaselineCall::kEachChunk: {
      const Chunks chunks = ScatteredChunks(**timer, baseline.chunk_bytes);
      return (*timer)->Time(baseline.rounds, kHost, [&](cudaStream_t stream) { return QueueEach(chunks, baseline.chunk_bytes, stream); });
    }
    case BaselineCall::kBatch: return TimeBatch(**timer, baseline);
  }
  return MakeError(Errc::kInvalidArgument, "measuring a copy: unknown call");
}

}  // namespace kvm
