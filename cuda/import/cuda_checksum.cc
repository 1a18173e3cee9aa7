// Puts a geometry's chunks and the wanted blocks on the GPU and fetches their checksums.
#include "cuda/import/cuda_checksum.h"

#include <algorithm>
#include <numeric>

#include "cuda/devices.h"
#include "cuda/kernels/checksum_kernel.h"

namespace kvm {
namespace {

// Device memory of one call, freed in stream order.
class Scratch {
 public:
  Scratch(std::size_t bytes, cudaStream_t stream) : stream_(stream), error_(cudaMallocAsync(&data_, bytes, stream)) {}
  ~Scratch() {
    if (error_ == cudaSuccess) static_cast<void>(cudaFreeAsync(data_, stream_));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  cudaError_t error() const { return error_; }
  template <class T>
  T* At(std::size_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset);
  }

 private:
  const cudaStream_t stream_;
  void* data_ = nullptr;
  const cudaError_t error_;
};

struct Stream {
  cudaStream_t handle = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking);
  ~Stream() {
    if (handle != nullptr) static_cast<void>(cudaStreamDestroy(handle));
  }
};

std::vector<ChecksumChunk> Chunks(std::span<std::byte* const> bases, const Geometry& geometry) {
  std::vector<ChecksumChunk> chunks;
  std::uint64_t position = 0;
  for (const GeometryPart& part : geometry.parts) {
    for (std::uint32_t r = 0; r < part.count; ++r) {
      const std::uint64_t address = reinterpret_cast<std::uintptr_t>(bases[part.segment]) + part.offset + r * part.repeat_stride;
      chunks.push_back({address, part.block_stride, part.chunk_bytes, position});
      position += part.chunk_bytes;
    }
  }
  return chunks;
}

}  // namespace

Result<std::vector<std::uint64_t>> ChecksumBlocks(const CudaDevice& device, std::span<std::byte* const> bases, const Geometry& geometry,
                                                  std::span<const std::uint32_t> blocks) {
  for (const GeometryPart& part : geometry.parts) {
    if (part.segment >= bases.size()) return MakeError(Errc::kInvalidArgument, "checksum: segment " + std::to_string(part.segment));
  }
  for (const std::uint32_t block : blocks) {
    if (block >= geometry.block_count) return MakeError(Errc::kInvalidArgument, "checksum: block " + std::to_string(block));
  }
  std::vector<std::uint64_t> sums(blocks.size());
  if (blocks.empty()) return sums;
  const std::vector<ChecksumChunk> chunks = Chunks(bases, geometry);
  const bool whole_words = std::all_of(chunks.begin(), chunks.end(),
                                       [](const ChecksumChunk& chunk) { return (chunk.address | chunk.stride | chunk.bytes) % 8 == 0; });
  const std::size_t chunk_bytes = chunks.size() * sizeof(ChecksumChunk), sum_bytes = sums.size() * sizeof(std::uint64_t);

  const DeviceGuard guard(device);
  const Stream stream;
  if (stream.error != cudaSuccess) return CudaError(stream.error, "checksum: stream");
  const Scratch scratch(chunk_bytes + sum_bytes + blocks.size_bytes(), stream.handle);
  cudaError_t error = scratch.error();
  auto* device_chunks = scratch.At<ChecksumChunk>(0);
  auto* device_sums = scratch.At<std::uint64_t>(chunk_bytes);
  auto* device_blocks = scratch.At<std::uint32_t>(chunk_bytes + sum_bytes);
  if (error == cudaSuccess) error = cudaMemcpyAsync(device_chunks, chunks.data(), chunk_bytes, cudaMemcpyHostToDevice, stream.handle);
  if (error == cudaSuccess)
    error = cudaMemcpyAsync(device_blocks, blocks.data(), blocks.size_bytes(), cudaMemcpyHostToDevice, stream.handle);
  if (error == cudaSuccess) {
    error = LaunchChecksum(device_chunks, static_cast<std::uint32_t>(chunks.size()), geometry.BlockBytes(), whole_words, device_blocks,
                           static_cast<std::uint32_t>(blocks.size()), device_sums, stream.handle);
  }
  if (error == cudaSuccess) error = cudaMemcpyAsync(sums.data(), device_sums, sum_bytes, cudaMemcpyDeviceToHost, stream.handle);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream.handle);
  if (error != cudaSuccess) return CudaError(error, "checksum");
  return sums;
}

Result<std::vector<std::uint64_t>> ChecksumGpuMemory(const DeviceUuid& uuid, const std::byte* base, const Geometry& geometry) {
  const Result<std::shared_ptr<const CudaDevice>> device = CudaDevice::Open(uuid);
  if (!device) return device.error();
  std::vector<std::uint32_t> blocks(geometry.block_count);
  std::iota(blocks.begin(), blocks.end(), 0);
  // Bases are given as importers have them; nothing is written
  auto* readable = const_cast<std::byte*>(base);
  return ChecksumBlocks(**device, {&readable, 1}, geometry, blocks);
}

}  // namespace kvm
