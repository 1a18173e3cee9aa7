// Launches the kernel that computes checksums of blocks in GPU memory, by the function in
// cuda/host/checksum.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace kvm {

// A chunk of block 0, its position in the block's byte order, and the stride from block to block.
struct ChecksumChunk {
  std::uint64_t address = 0;
  std::uint64_t stride = 0;
  std::uint64_t bytes = 0;
  std::uint64_t position = 0;
};

// All pointers are device memory; `sums` [block_count] is written.
// Chunks are in order and lie without gaps in the block's byte order.
[[nodiscard]] cudaError_t LaunchChecksum(const ChecksumChunk* chunks, std::uint32_t chunk_count, std::uint64_t block_bytes,
                                         bool whole_words, const std::uint32_t* blocks, std::uint32_t block_count, std::uint64_t* sums,
                                         cudaStream_t stream);

}  // namespace kvm
