#include "tests/bench/copy_baselines.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "cuda/device/cuda_device.h"

namespace kvm::bench {
namespace {

// A buffer on the importer's GPU and one on the owner's, or without `owner` in pinned host memory,
// with access to it.
class CopyBuffers {
 public:
  using Queue = std::function<cudaError_t(cudaStream_t)>;

  static Result<std::unique_ptr<CopyBuffers>> Create(std::shared_ptr<const CudaDevice> importer, std::shared_ptr<const CudaDevice> owner,
                                                     std::uint64_t bytes) {
    auto buffers = std::unique_ptr<CopyBuffers>(new CopyBuffers(std::move(importer), std::move(owner), bytes));
    if (const cudaError_t error = buffers->Prepare(); error != cudaSuccess) return CudaError(error, "preparing to measure copies");
    return buffers;
  }
  ~CopyBuffers() {
    {
      const DeviceGuard guard(*importer_);
      if (stream_ != nullptr) static_cast<void>(cudaStreamSynchronize(stream_));
      if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
      static_cast<void>(cudaFree(destination_));
      if (access_enabled_) static_cast<void>(cudaDeviceDisablePeerAccess(owner_->ordinal()));
    }
    const DeviceGuard guard(owner_ ? *owner_ : *importer_);
    static_cast<void>(owner_ ? cudaFree(source_) : cudaFreeHost(source_));
    static_cast<void>(cudaGetLastError());
  }
  CopyBuffers(const CopyBuffers&) = delete;
  CopyBuffers& operator=(const CopyBuffers&) = delete;

  std::byte* destination() const noexcept { return static_cast<std::byte*>(destination_); }
  const std::byte* source() const noexcept { return static_cast<const std::byte*>(source_); }
  std::uint64_t bytes() const noexcept { return bytes_; }

  cudaError_t QueueContiguous(cudaStream_t stream) const noexcept {
    if (!owner_) return cudaMemcpyAsync(destination_, source_, bytes_, cudaMemcpyHostToDevice, stream);
    return cudaMemcpyPeerAsync(destination_, importer_->ordinal(), source_, owner_->ordinal(), bytes_, stream);
  }

  // Seconds of each of `rounds`, from the call until the host has seen the end, after one that
  // warms up.
  Result<std::vector<double>> Time(unsigned rounds, const Queue& queue) const {
    const DeviceGuard guard(*importer_);
    std::vector<double> seconds;
    for (unsigned round = 0; round <= rounds; ++round) {
      const auto start = std::chrono::steady_clock::now();
      cudaError_t error = queue(stream_);
      if (error == cudaSuccess) error = cudaStreamSynchronize(stream_);
      const double taken = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (error != cudaSuccess) return CudaError(error, "measuring a copy");
      if (round > 0) seconds.push_back(taken);
    }
    return seconds;
  }

 private:
  CopyBuffers(std::shared_ptr<const CudaDevice> importer, std::shared_ptr<const CudaDevice> owner, std::uint64_t bytes)
      : importer_(std::move(importer)), owner_(std::move(owner)), bytes_(bytes) {}

  cudaError_t AllocateSource() {
    const DeviceGuard guard(owner_ ? *owner_ : *importer_);
    return owner_ ? cudaMalloc(&source_, bytes_) : cudaHostAlloc(&source_, bytes_, cudaHostAllocDefault);
  }

  cudaError_t Prepare() {
    if (const cudaError_t error = AllocateSource(); error != cudaSuccess) return error;
    const DeviceGuard guard(*importer_);
    if (owner_ && importer_->ordinal() != owner_->ordinal()) {
      const cudaError_t error = cudaDeviceEnablePeerAccess(owner_->ordinal(), 0);
      access_enabled_ = error == cudaSuccess;
      static_cast<void>(cudaGetLastError());
      if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled) return error;
    }
    const cudaError_t error = cudaMalloc(&destination_, bytes_);
    return error == cudaSuccess ? cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) : error;
  }

  const std::shared_ptr<const CudaDevice> importer_, owner_;
  const std::uint64_t bytes_;
  bool access_enabled_ = false;  // by this object: the process may have it on already
  void *destination_ = nullptr, *source_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

// Where each chunk comes from and goes to.
struct Chunks {
  std::vector<const void*> from;
  std::vector<void*> to;
};

Chunks ScatteredChunks(const CopyBuffers& buffers, std::uint64_t chunk_bytes) {
  std::vector<std::uint64_t> from(buffers.bytes() / chunk_bytes), to(from.size());
  std::iota(from.begin(), from.end(), 0);
  std::iota(to.begin(), to.end(), 0);
  std::mt19937_64 random(1);
  std::shuffle(from.begin(), from.end(), random);
  std::shuffle(to.begin(), to.end(), random);
  Chunks chunks;
  for (std::size_t i = 0; i < from.size(); ++i) {
    chunks.from.push_back(buffers.source() + from[i] * chunk_bytes);
    chunks.to.push_back(buffers.destination() + to[i] * chunk_bytes);
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

Result<std::vector<double>> TimeBatch(const CopyBuffers& buffers, [[maybe_unused]] const CopyBaseline& baseline) {
#if CUDART_VERSION >= 13000
  Chunks chunks = ScatteredChunks(buffers, baseline.chunk_bytes);
  std::vector<std::size_t> sizes(chunks.from.size(), baseline.chunk_bytes);
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  std::size_t first = 0;
  return buffers.Time(baseline.rounds, [&](cudaStream_t stream) {
    return cudaMemcpyBatchAsync(chunks.to.data(), chunks.from.data(), sizes.data(), sizes.size(), &attributes, &first, 1, stream);
  });
#else
  static_cast<void>(buffers);
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
  const Result<std::unique_ptr<CopyBuffers>> made = CopyBuffers::Create(std::move(*importer), std::move(owner), baseline.bytes);
  if (!made) return made.error();
  const CopyBuffers& buffers = **made;
  switch (baseline.call) {
    case BaselineCall::kContiguous:
      return buffers.Time(baseline.rounds, [&](cudaStream_t stream) { return buffers.QueueContiguous(stream); });
    case BaselineCall::kEachChunk: {
      const Chunks chunks = ScatteredChunks(buffers, baseline.chunk_bytes);
      return buffers.Time(baseline.rounds, [&](cudaStream_t stream) { return QueueEach(chunks, baseline.chunk_bytes, stream); });
    }
    case BaselineCall::kBatch: return TimeBatch(buffers, baseline);
  }
  return MakeError(Errc::kInvalidArgument, "measuring a copy: unknown call");
}

}  // namespace kvm::bench
