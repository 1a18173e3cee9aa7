#include "cuda/copy_policy.h"

#include <algorithm>

namespace kvm {
namespace {

constexpr unsigned kWarp = 32, kLoadsInFlight = 8;  // copy_kernels.cu: words that one thread has in flight

// Measured on two H100s joined by 18 NVLinks (bench_import --tune; contiguous copy 397 GB/s):
//   any kernel with enough bytes in flight reaches 372 GB/s: bulk copies of 8 KiB in two rings of 13 from 12
//   multiprocessors on (8: 356), plain loads of 512 threads from 20 on (8: 300). More than 24 gain nothing and at
//   some counts lose a tenth, since blocks in step meet in the same memory partitions.
//   On one GPU (contiguous 1,497 GB/s) all multiprocessors are needed: bulk 1,376, plain loads 1,364.
//   Below 8 MiB both kinds take the same time, which is that of starting and ending a kernel.
constexpr unsigned kLinkSms = 24;
constexpr unsigned kPcieSms = 12;  // a PCIe link needs few bytes in flight
constexpr std::uint64_t kBulkMinBytes = std::uint64_t{8} << 20;

// What fits the shared memory of one multiprocessor, by size of piece.
struct BulkShape {
  std::uint32_t unit_bytes;
  unsigned rings;
};
constexpr BulkShape kLargePieces{8 << 10, 2}, kSmallPieces{4 << 10, 4};
constexpr unsigned kMaxStages = 48;  // copy_kernels.cu

unsigned WordBytes(std::uint64_t alignment) {
  for (const unsigned word : {16u, 8u, 4u}) {
    if (alignment % word == 0) return word;
  }
  return 1;
}

// Multiprocessors to use: what the path needs, within what the caller allows.
unsigned SmsFor(MemoryPath path, const CopyLimits& limits) {
  const unsigned allowed = limits.max_sms == 0 ? limits.sm_count : std::min(limits.max_sms, limits.sm_count);
  switch (path) {
    case MemoryPath::kSameDevice: return allowed;
    case MemoryPath::kNvlink: return std::min(allowed, kLinkSms);
    case MemoryPath::kPciePeer:
    case MemoryPath::kHost: return std::min(allowed, kPcieSms);
  }
  return allowed;
}

}  // namespace

KernelChoice ChooseKernel(const KernelWork& work, const CopyLimits& limits) {
  if (limits.forced) return *limits.forced;
  KernelChoice choice;
  choice.word_bytes = WordBytes(work.alignment);
  choice.unit_bytes = kWarp * kLoadsInFlight * choice.word_bytes;
  choice.threads = 512;
  if (limits.bulk_shared_bytes == 0 || choice.word_bytes != 16 || work.bytes < kBulkMinBytes) return choice;
  for (const BulkShape& shape : {kLargePieces, kSmallPieces}) {
    if (work.largest_piece < shape.unit_bytes) continue;
    choice.kind = KernelKind::kBulk;
    choice.unit_bytes = shape.unit_bytes;
    choice.rings = shape.rings;
    choice.stages = std::min(kMaxStages, limits.bulk_shared_bytes / shape.unit_bytes) / shape.rings;
    return choice;
  }
  return choice;
}

void SizeGrid(KernelChoice& choice, std::uint64_t items, MemoryPath worst_path, const CopyLimits& limits) {
  if (limits.forced) return;
  const std::uint64_t at_once = choice.kind == KernelKind::kBulk ? choice.rings : choice.threads / kWarp;
  choice.blocks = static_cast<unsigned>(std::clamp<std::uint64_t>((items + at_once - 1) / at_once, 1, SmsFor(worst_path, limits)));
}

// A copy of its own costs the copy engine 3.5 us: with 16 MiB it reaches 361 GB/s, with 64 MiB 386, and it
// takes no multiprocessor.
std::uint64_t EngineRunBytes(MemoryPath path, const CopyLimits& limits) {
  if (limits.forced) return std::uint64_t{1} << 50;
  switch (path) {
    case MemoryPath::kSameDevice:
    case MemoryPath::kNvlink: return std::uint64_t{16} << 20;
    case MemoryPath::kPciePeer:
    case MemoryPath::kHost: return std::uint64_t{1} << 20;
  }
  return std::uint64_t{16} << 20;
}

unsigned ValidationBlocks(std::uint32_t pairs, const CopyLimits& limits) {
  constexpr std::uint32_t kPairsPerBlock = 256, kMostBlocks = 32;
  const std::uint32_t allowed = limits.max_sms == 0 ? limits.sm_count : std::min(limits.max_sms, limits.sm_count);
  return std::clamp((pairs + kPairsPerBlock - 1) / kPairsPerBlock, 1u, std::min(allowed, kMostBlocks));
}

}  // namespace kvm
