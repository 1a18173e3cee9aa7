// Block contents that say what they are: every 64-bit word is a function of (block tag, generation,
// place in the block), written and compared on the GPU, in any geometry. A torn or stale copy is
// seen word by word.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/host/checksum.h"
#include "kvm/geometry.h"

namespace kvm::test {

// A chunk of block 0, its place in the block's byte order, and the way to block b's.
struct PatternChunk {
  std::uint64_t address = 0, stride = 0, bytes = 0, position = 0;
};

KVM_HOST_DEVICE constexpr std::uint64_t PatternWord(std::uint32_t tag, std::uint64_t generation, std::uint64_t index) {
  return tag * 0x9E3779B97F4A7C15ULL ^ generation * 0xC2B2AE3D27D4EB4FULL ^ index * 0x165667B19E3779F9ULL;
}

struct PatternBlock {
  std::uint32_t block = 0;  // where it lies
  std::uint32_t tag = 0;    // what it says it is: the source's block
  std::uint64_t generation = 0;
};

// Of the current device. Not thread-safe. Aborts the process on a CUDA error: for tests only.
class Pattern {
 public:
  // `bases[i]`: address of segment i.
  Pattern(const Geometry& geometry, std::span<std::byte* const> bases);
  ~Pattern();
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // Writes the blocks and waits.
  void Fill(std::span<const PatternBlock> blocks);
  // For each block whether any byte differs.
  std::vector<bool> Wrong(std::span<const PatternBlock> blocks);

 private:
  void Reserve(std::size_t blocks);

  std::uint64_t block_bytes_ = 0;
  std::uint32_t chunk_count_ = 0;
  bool words_ = true;
  PatternChunk* chunks_ = nullptr;  // device
  PatternBlock* blocks_ = nullptr;  // host, seen by the GPU
  std::uint32_t* wrong_ = nullptr;  // host, seen by the GPU
  std::size_t room_ = 0;
  cudaStream_t stream_ = nullptr;
};

// Prints the call and ends the process unless `error` is success.
void MustSucceed(cudaError_t error, const char* what);

}  // namespace kvm::test
