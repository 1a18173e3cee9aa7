// The data plane's choices, based on measurements: copy engine or kernel, which kernel, and how
// many multiprocessors.
//
// The constants are from tests/gpu/bench_import --tune on the machine named in docs/BENCHMARKS.md;
// they are ratios of overhead to bandwidth that hold for any GPU of that class, and affect speed
// only.
#pragma once

#include <cstdint>
#include <optional>

#include "cuda/memory_backend.h"

namespace kvm {

enum class KernelKind : std::uint8_t {
  kVector,  // every thread loads several words into registers, then stores them
  kBulk,    // cp.async.bulk into a ring in shared memory and out of it; needs 16-byte alignment
};

struct KernelChoice {
  KernelKind kind = KernelKind::kVector;
  unsigned word_bytes = 16;  // kVector: 16, 8, 4 or 1
  std::uint32_t unit_bytes = 4096;
  unsigned blocks = 1;  // CUDA blocks: at most one a multiprocessor
  unsigned threads = 1024;
  unsigned rings = 0, stages = 0;  // kBulk: per CUDA block, and per ring
};

// Properties of the importing GPU, and the caller's limits.
struct CopyLimits {
  unsigned sm_count = 1;
  unsigned max_sms = 0;  // 0: no bound
  // Shared memory a block may have; 0: no bulk copies on this GPU
  std::uint32_t bulk_shared_bytes = 0;
#if defined(KVM_TEST_HOOKS)
  std::optional<KernelChoice> forced;  // this kernel, never the copy engine
#endif
};

// The work of one launch.
struct KernelWork {
  std::uint64_t bytes = 0;
  std::uint64_t largest_piece = 0;
  std::uint64_t alignment = 0;  // OR of all addresses, strides and sizes
  MemoryPath worst_path = MemoryPath::kSameDevice;
};

KernelChoice ChooseKernel(const KernelWork& work, const CopyLimits& limits);

// Sets `blocks`, and `threads` of a vector kernel, once the number of items is known.
void SizeGrid(KernelChoice& choice, std::uint64_t items, MemoryPath worst_path, const CopyLimits& limits);

// The smallest average size of contiguous runs for which the copy engine is used.
std::uint64_t EngineRunBytes(MemoryPath path, const CopyLimits& limits);

// Up to this number of pairs, the copy kernel's last CUDA block validates them. One multiprocessor
// has about 64 reads of host memory under way, 25 ns each (measured), so for more pairs a second
// launch that spreads them over multiprocessors is faster.
inline constexpr std::uint32_t kFusedPairs = 96;
inline constexpr std::uint32_t kValidationThreads = 64;  // threads of a CUDA block of that launch
// The number of CUDA blocks of that launch.
unsigned ValidationBlocks(std::uint32_t pairs, const CopyLimits& limits);

}  // namespace kvm
