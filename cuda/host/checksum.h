// Content checksum of a block: 64 bits over its bytes in geometry order.
//
// The bytes are read as little-endian 64-bit words; the sum of ChecksumWord(i, word i), closed with
// the length. Each word is mixed with its position, so moved or swapped words change the sum.
// Addition makes it independent of the order of evaluation, and so of the number of threads and of
// the division into chunks. It guards against faults, not against an adversary. The GPU computes
// the same function (cuda/kernels/checksum_kernel.cu).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvm/geometry.h"

#if defined(__CUDACC__)
#define KVM_HOST_DEVICE __host__ __device__
#else
#define KVM_HOST_DEVICE
#endif

namespace kvm {

// Source: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
KVM_HOST_DEVICE constexpr std::uint64_t ChecksumWord(std::uint64_t index, std::uint64_t word) noexcept {
  std::uint64_t z = word + (index + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}
KVM_HOST_DEVICE constexpr std::uint64_t CloseChecksum(std::uint64_t sum, std::uint64_t bytes) noexcept { return ChecksumWord(bytes, sum); }

// On the CPU. `bases[i]`: address of segment i. Precondition: block < geometry.block_count.
std::uint64_t ChecksumBlock(const Geometry& geometry, std::span<const std::byte* const> bases, std::uint32_t block) noexcept;

}  // namespace kvm
