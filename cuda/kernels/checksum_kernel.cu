// One CUDA block sums one KV block: its threads take words in turn, then add up.
#include "cuda/host/checksum.h"
#include "cuda/kernels/checksum_kernel.h"

namespace kvm {
namespace {

constexpr unsigned kThreads = 512, kWarp = 32;

__device__ void AddToSum(std::uint64_t sum, std::uint64_t* total) {
#pragma unroll
  for (unsigned step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  if (threadIdx.x % kWarp == 0) atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(sum));
}

// All chunks are whole, aligned words.
__global__ void __launch_bounds__(kThreads) SumWords(const ChecksumChunk* chunks, std::uint32_t chunk_count, std::uint64_t block_bytes,
                                                     const std::uint32_t* blocks, std::uint64_t* sums) {
  __shared__ std::uint64_t total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  const std::uint64_t block = blocks[blockIdx.x];
  std::uint64_t sum = 0;
  for (std::uint32_t c = 0; c < chunk_count; ++c) {
    const ChecksumChunk chunk = chunks[c];
    const auto* words = reinterpret_cast<const std::uint64_t*>(chunk.address + block * chunk.stride);
    const std::uint64_t first = chunk.position / 8, count = chunk.bytes / 8;
#pragma unroll 4
    for (std::uint64_t i = threadIdx.x; i < count; i += kThreads) sum += ChecksumWord(first + i, words[i]);
  }
  AddToSum(sum, &total);
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = CloseChecksum(total, block_bytes);
}

// For any division into chunks: every word is assembled from its bytes.
__global__ void __launch_bounds__(kThreads) SumBytes(const ChecksumChunk* chunks, std::uint32_t chunk_count, std::uint64_t block_bytes,
                                                     const std::uint32_t* blocks, std::uint64_t* sums) {
  __shared__ std::uint64_t total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  const std::uint64_t block = blocks[blockIdx.x];
  std::uint64_t sum = 0;
  std::uint32_t c = 0;
  for (std::uint64_t word = threadIdx.x; word * 8 < block_bytes; word += kThreads) {
    std::uint64_t value = 0;
    for (std::uint64_t byte = word * 8; byte < min(word * 8 + 8, block_bytes); ++byte) {
      while (byte >= chunks[c].position + chunks[c].bytes) ++c;
      const auto* at = reinterpret_cast<const std::uint8_t*>(chunks[c].address + block * chunks[c].stride + (byte - chunks[c].position));
      value |= std::uint64_t{*at} << (8 * (byte - word * 8));
    }
    sum += ChecksumWord(word, value);
  }
  __syncwarp();
  AddToSum(sum, &total);
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = CloseChecksum(total, block_bytes);
}

}  // namespace

cudaError_t LaunchChecksum(const ChecksumChunk* chunks, std::uint32_t chunk_count, std::uint64_t block_bytes, bool whole_words,
                           const std::uint32_t* blocks, std::uint32_t block_count, std::uint64_t* sums, cudaStream_t stream) {
  if (whole_words) {
    SumWords<<<block_count, kThreads, 0, stream>>>(chunks, chunk_count, block_bytes, blocks, sums);
  } else {
    SumBytes<<<block_count, kThreads, 0, stream>>>(chunks, chunk_count, block_bytes, blocks, sums);
  }
  return cudaGetLastError();
}

}  // namespace kvm
