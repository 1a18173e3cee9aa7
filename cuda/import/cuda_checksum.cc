// Puts a geometry's chunks and the wanted blocks on the GPU and fetches their checksums.
#include "cuda/import/cuda_checksum.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cuda/devices.h"
#include "cuda/import/checksum_context.h"
#include "cuda/kernels/checksum_kernel.h"

namespace kvm {
namespace {

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

// Queues the sums of `blocks`, and their copy to context.host(), and waits for it. The lists and
// the sums lie one behind the other: [chunks][sums][blocks].
cudaError_t Sum(ChecksumContext& context, std::span<const ChecksumChunk> chunks, std::span<const std::uint32_t> blocks,
                std::uint64_t block_bytes) {
  const bool whole_words = std::all_of(chunks.begin(), chunks.end(),
                                       [](const ChecksumChunk& chunk) { return (chunk.address | chunk.stride | chunk.bytes) % 8 == 0; });
  const std::size_t sums_at = chunks.size_bytes(), blocks_at = sums_at + blocks.size() * sizeof(std::uint64_t);
  std::memcpy(context.host(), chunks.data(), chunks.size_bytes());
  std::memcpy(context.host() + blocks_at, blocks.data(), blocks.size_bytes());
  auto* sums = reinterpret_cast<std::uint64_t*>(context.device() + sums_at);
  cudaError_t error =
      cudaMemcpyAsync(context.device(), context.host(), blocks_at + blocks.size_bytes(), cudaMemcpyHostToDevice, context.stream());
  if (error == cudaSuccess) {
    error = LaunchChecksum(reinterpret_cast<const ChecksumChunk*>(context.device()), static_cast<std::uint32_t>(chunks.size()), block_bytes,
                           whole_words, reinterpret_cast<const std::uint32_t*>(context.device() + blocks_at),
                           static_cast<std::uint32_t>(blocks.size()), sums, context.stream());
  }
  if (error == cudaSuccess)
    error = cudaMemcpyAsync(context.host() + sums_at, sums, blocks_at - sums_at, cudaMemcpyDeviceToHost, context.stream());
  return error == cudaSuccess ? cudaStreamSynchronize(context.stream()) : error;
}

}  // namespace

Result<std::vector<std::uint64_t>> ChecksumBlocks(const std::shared_ptr<const CudaDevice>& device, std::span<std::byte* const> bases,
                                                  const Geometry& geometry, std::span<const std::uint32_t> blocks) {
  for (const GeometryPart& part : geometry.parts) {
    if (part.segment >= bases.size()) return MakeError(Errc::kInvalidArgument, "checksum: segment " + std::to_string(part.segment));
  }
  for (const std::uint32_t block : blocks) {
    if (block >= geometry.block_count) return MakeError(Errc::kInvalidArgument, "checksum: block " + std::to_string(block));
  }
  std::vector<std::uint64_t> sums(blocks.size());
  if (blocks.empty()) return sums;
  const std::vector<ChecksumChunk> chunks = Chunks(bases, geometry);
  const std::size_t chunk_bytes = chunks.size() * sizeof(ChecksumChunk), sum_bytes = sums.size() * sizeof(std::uint64_t);

  Result<std::unique_ptr<ChecksumContext>> context = ChecksumContext::Take(device);
  if (!context) return context.error();
  if (Status room = (*context)->Reserve(chunk_bytes + sum_bytes + blocks.size_bytes()); !room) return room.error();
  const DeviceGuard guard(*device);
  if (const cudaError_t error = Sum(**context, chunks, blocks, geometry.BlockBytes()); error != cudaSuccess) {
    return CudaError(error, "checksum");
  }
  std::memcpy(sums.data(), (*context)->host() + chunk_bytes, sum_bytes);
  ChecksumContext::Return(std::move(*context));
  return sums;
}

Result<std::vector<std::uint64_t>> ChecksumGpuMemory(const DeviceUuid& uuid, const std::byte* base, const Geometry& geometry) {
  const Result<std::shared_ptr<const CudaDevice>> device = OpenForChecksums(uuid);
  if (!device) return device.error();
  std::vector<std::uint32_t> blocks(geometry.block_count);
  std::iota(blocks.begin(), blocks.end(), 0);
  // Bases are given as importers have them; nothing is written
  auto* readable = const_cast<std::byte*>(base);
  return ChecksumBlocks(*device, {&readable, 1}, geometry, blocks);
}

}  // namespace kvm
