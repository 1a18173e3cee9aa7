#include "tests/gpu/pattern.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace kvm::test {
namespace {

constexpr unsigned kThreads = 256;

__device__ std::uint8_t PatternByte(const PatternBlock& block, std::uint64_t at) {
  return static_cast<std::uint8_t>(PatternWord(block.tag, block.generation, at / 8) >> (8 * (at % 8)));
}

template <bool kWords>
__global__ void FillBlocks(const PatternChunk* chunks, std::uint32_t count, const PatternBlock* blocks) {
  const PatternBlock block = blocks[blockIdx.x];
  for (std::uint32_t c = blockIdx.y; c < count; c += gridDim.y) {
    const PatternChunk chunk = chunks[c];
    const std::uint64_t address = chunk.address + block.block * chunk.stride;
    if (kWords) {
      auto* words = reinterpret_cast<std::uint64_t*>(address);
      for (std::uint64_t i = threadIdx.x; i < chunk.bytes / 8; i += kThreads) {
        words[i] = PatternWord(block.tag, block.generation, chunk.position / 8 + i);
      }
    } else {
      auto* bytes = reinterpret_cast<std::uint8_t*>(address);
      for (std::uint64_t i = threadIdx.x; i < chunk.bytes; i += kThreads) bytes[i] = PatternByte(block, chunk.position + i);
    }
  }
}

template <bool kWords>
__global__ void CompareBlocks(const PatternChunk* chunks, std::uint32_t count, const PatternBlock* blocks, std::uint32_t* wrong) {
  const PatternBlock block = blocks[blockIdx.x];
  bool differs = false;
  for (std::uint32_t c = blockIdx.y; c < count; c += gridDim.y) {
    const PatternChunk chunk = chunks[c];
    const std::uint64_t address = chunk.address + block.block * chunk.stride;
    if (kWords) {
      const auto* words = reinterpret_cast<const std::uint64_t*>(address);
      for (std::uint64_t i = threadIdx.x; i < chunk.bytes / 8; i += kThreads) {
        differs |= words[i] != PatternWord(block.tag, block.generation, chunk.position / 8 + i);
      }
    } else {
      const auto* bytes = reinterpret_cast<const std::uint8_t*>(address);
      for (std::uint64_t i = threadIdx.x; i < chunk.bytes; i += kThreads) differs |= bytes[i] != PatternByte(block, chunk.position + i);
    }
  }
  if (differs) wrong[blockIdx.x] = 1;
}

}  // namespace

void MustSucceed(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s (%s)\n", what, cudaGetErrorName(error), cudaGetErrorString(error));
  std::abort();
}

Pattern::Pattern(const Geometry& geometry, std::span<std::byte* const> bases) {
  std::vector<PatternChunk> chunks;
  for (const GeometryPart& part : geometry.parts) {
    for (std::uint32_t r = 0; r < part.count; ++r) {
      const std::uint64_t address = reinterpret_cast<std::uintptr_t>(bases[part.segment]) + part.offset + r * part.repeat_stride;
      chunks.push_back({address, part.block_stride, part.chunk_bytes, block_bytes_});
      words_ = words_ && (address | part.block_stride | part.chunk_bytes) % 8 == 0;
      block_bytes_ += part.chunk_bytes;
    }
  }
  chunk_count_ = static_cast<std::uint32_t>(chunks.size());
  MustSucceed(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  MustSucceed(cudaMalloc(&chunks_, chunks.size() * sizeof(PatternChunk)), "cudaMalloc");
  MustSucceed(cudaMemcpyAsync(chunks_, chunks.data(), chunks.size() * sizeof(PatternChunk), cudaMemcpyHostToDevice, stream_), "upload");
  MustSucceed(cudaStreamSynchronize(stream_), "upload");
}

Pattern::~Pattern() {
  cudaFree(chunks_);
  cudaFreeHost(blocks_);
  cudaFreeHost(wrong_);
  cudaStreamDestroy(stream_);
}

void Pattern::Reserve(std::size_t blocks) {
  if (blocks <= room_) return;
  cudaFreeHost(blocks_);
  cudaFreeHost(wrong_);
  room_ = std::max<std::size_t>(2 * blocks, 256);
  MustSucceed(cudaMallocHost(&blocks_, room_ * sizeof(PatternBlock)), "cudaMallocHost");
  MustSucceed(cudaMallocHost(&wrong_, room_ * sizeof(std::uint32_t)), "cudaMallocHost");
}

void Pattern::Fill(std::span<const PatternBlock> blocks) {
  if (blocks.empty()) return;
  Reserve(blocks.size());
  std::memcpy(blocks_, blocks.data(), blocks.size_bytes());
  const dim3 grid(static_cast<unsigned>(blocks.size()), std::min(chunk_count_, 64u));
  if (words_) {
    FillBlocks<true><<<grid, kThreads, 0, stream_>>>(chunks_, chunk_count_, blocks_);
  } else {
    FillBlocks<false><<<grid, kThreads, 0, stream_>>>(chunks_, chunk_count_, blocks_);
  }
  MustSucceed(cudaGetLastError(), "fill");
  MustSucceed(cudaStreamSynchronize(stream_), "fill");
}

std::vector<bool> Pattern::Wrong(std::span<const PatternBlock> blocks) {
  std::vector<bool> out(blocks.size());
  if (blocks.empty()) return out;
  Reserve(blocks.size());
  std::memcpy(blocks_, blocks.data(), blocks.size_bytes());
  std::memset(wrong_, 0, blocks.size() * sizeof(std::uint32_t));
  const dim3 grid(static_cast<unsigned>(blocks.size()), std::min(chunk_count_, 64u));
  if (words_) {
    CompareBlocks<true><<<grid, kThreads, 0, stream_>>>(chunks_, chunk_count_, blocks_, wrong_);
  } else {
    CompareBlocks<false><<<grid, kThreads, 0, stream_>>>(chunks_, chunk_count_, blocks_, wrong_);
  }
  MustSucceed(cudaGetLastError(), "compare");
  MustSucceed(cudaStreamSynchronize(stream_), "compare");
  for (std::size_t i = 0; i < blocks.size(); ++i) out[i] = wrong_[i] != 0;
  return out;
}

}  // namespace kvm::test
