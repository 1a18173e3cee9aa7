#include "cuda/plan/copy_policy.h"

#include <algorithm>

namespace kvm {
namespace {

// copy_kernels.cu: words that one thread has in flight
constexpr unsigned kWarp = 32, kLoadsInFlight = 8;

// Measured on two H100s joined by 18 NVLinks (bench_import --tune; contiguous copy 397 GB/s):
//   Over the link any kernel with enough bytes in flight reaches 372 GB/s. Plain loads with 512
//   threads a multiprocessor: 8 of them 300, 16 371, 32 372, 132 372 GB/s; with 1,024 threads 8
//   reach 369. Bulk copies: 361 with 8, 372 with 16, but 16 MiB take 5 % longer, since a ring
//   starts slowly. Hence plain loads. On one GPU (contiguous 1,490 GB/s) all multiprocessors are
//   needed. 1 GiB: bulk 1,387, plain loads 1,364; 16 MiB: 901 and 955 (contiguous 1,080). Hence
//   bulk copies for large imports.
constexpr unsigned kLinkSms = 32;
constexpr unsigned kPcieSms = 12;  // a PCIe link needs few bytes in flight
constexpr unsigned kFewSms = 12;   // up to this number, 1,024 threads each
constexpr std::uint64_t kBulkMinBytes = std::uint64_t{64} << 20;

// The ring that fits into the shared memory of one multiprocessor, by size of piece.
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

// The number of multiprocessors to use: as many as the path needs, within the caller's limit.
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
#if defined(KVM_TEST_HOOKS)
  if (limits.forced) return *limits.forced;
#endif
  const bool same_device = work.worst_path == MemoryPath::kSameDevice;
  KernelChoice choice;
  choice.word_bytes = WordBytes(work.alignment);
  choice.unit_bytes = kWarp * kLoadsInFlight * choice.word_bytes;
  choice.threads = same_device || SmsFor(work.worst_path, limits) <= kFewSms ? 1024 : 512;
  if (!same_device || limits.bulk_shared_bytes == 0 || choice.word_bytes != 16 || work.bytes < kBulkMinBytes) return choice;
  for (const BulkShape& shape : {kLargePieces, kSmallPieces}) {
    if (work.largest_piece < shape.unit_bytes) continue;
    choice.kind = KernelKind::kBulk;
    choice.unit_bytes = shape.unit_bytes;
    choice.threads = 512;
    choice.rings = shape.rings;
    choice.stages = std::min(kMaxStages, limits.bulk_shared_bytes / shape.unit_bytes) / shape.rings;
    return choice;
  }
  return choice;
}

void SizeGrid(KernelChoice& choice, std::uint64_t items, MemoryPath worst_path, const CopyLimits& limits) {
#if defined(KVM_TEST_HOOKS)
  if (limits.forced) return;
#endif
  // A small copy completes sooner on many multiprocessors with few threads than on few with many
  // threads.
  const unsigned sms = SmsFor(worst_path, limits);
  while (choice.kind == KernelKind::kVector && choice.threads > 256 && items <= std::uint64_t{sms} * (choice.threads / kWarp / 2)) {
    choice.threads /= 2;
  }
  const std::uint64_t at_once = choice.kind == KernelKind::kBulk ? choice.rings : choice.threads / kWarp;
  choice.blocks = static_cast<unsigned>(std::clamp<std::uint64_t>((items + at_once - 1) / at_once, 1, sms));
}

// One copy costs the copy engine 3.5 us: with 16 MiB it reaches 361 GB/s, with 64 MiB 386, and it
// uses no multiprocessor.
std::uint64_t EngineRunBytes(MemoryPath path, [[maybe_unused]] const CopyLimits& limits) {
#if defined(KVM_TEST_HOOKS)
  if (limits.forced) return std::uint64_t{1} << 50;
#endif
  switch (path) {
    case MemoryPath::kSameDevice:
    case MemoryPath::kNvlink: return std::uint64_t{16} << 20;
    case MemoryPath::kPciePeer:
    case MemoryPath::kHost: return std::uint64_t{1} << 20;
  }
  return std::uint64_t{16} << 20;
}

unsigned ValidationBlocks(std::uint32_t pairs, const CopyLimits& limits) {
  constexpr std::uint32_t kMostBlocks = 64;
  const std::uint32_t allowed = limits.max_sms == 0 ? limits.sm_count : std::min(limits.max_sms, limits.sm_count);
  return std::clamp((pairs + kValidationThreads - 1) / kValidationThreads, 1u, std::min(allowed, kMostBlocks));
}

}  // namespace kvm
