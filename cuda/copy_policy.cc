#include "cuda/copy_policy.h"

#include <algorithm>

namespace kvm {
namespace {

constexpr unsigned kWarp = 32, kLoadsInFlight = 8;  // copy_kernels.cu: words that one thread has in flight
constexpr std::uint32_t kBulkUnitBytes = 16 << 10;
// Below this a bulk copy moves too little for what its issue costs.
constexpr std::uint64_t kBulkMinPieceBytes = 8 << 10;
// Below this all multiprocessors with plain loads have the shorter start.
constexpr std::uint64_t kBulkMinBytes = 8 << 20;
// The ring reaches the link's rate with so many multiprocessors and leaves the others to the engine.
constexpr unsigned kBulkLinkSms = 32;

unsigned WordBytes(std::uint64_t alignment) {
  for (const unsigned word : {16u, 8u, 4u}) {
    if (alignment % word == 0) return word;
  }
  return 1;
}

unsigned SmBound(const CopyLimits& limits) { return limits.max_sms == 0 ? limits.sm_count : std::min(limits.max_sms, limits.sm_count); }

}  // namespace

KernelChoice ChooseKernel(const KernelWork& work, const CopyLimits& limits) {
  if (limits.forced) return *limits.forced;
  KernelChoice choice;
  choice.word_bytes = WordBytes(work.alignment);
  choice.unit_bytes = kWarp * kLoadsInFlight * choice.word_bytes;
  const bool crosses_link = work.worst_path != MemoryPath::kSameDevice;
  if (limits.bulk_shared_bytes > 0 && choice.word_bytes == 16 && crosses_link && work.bytes >= kBulkMinBytes &&
      work.largest_piece >= kBulkMinPieceBytes) {
    choice.kind = KernelKind::kBulk;
    choice.unit_bytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(kBulkUnitBytes, (work.largest_piece + 127) / 128 * 128));
    choice.rings = 1;
    choice.threads = 512;
    choice.stages = std::min<unsigned>(48, limits.bulk_shared_bytes / choice.unit_bytes);
  }
  return choice;
}

void SizeGrid(KernelChoice& choice, std::uint64_t items, MemoryPath, const CopyLimits& limits) {
  if (limits.forced) return;
  const unsigned bound = SmBound(limits);
  if (choice.kind == KernelKind::kBulk) {
    const std::uint64_t wanted = limits.max_sms == 0 ? std::min(bound, kBulkLinkSms) : bound;
    choice.blocks = static_cast<unsigned>(std::clamp<std::uint64_t>(items, 1, wanted));
    return;
  }
  // Few items: smaller CUDA blocks, so that they spread over more multiprocessors.
  choice.threads = 1024;
  for (const unsigned threads : {256u, 512u}) {
    if (items > 0 && items <= std::uint64_t{bound} * (threads / kWarp)) {
      choice.threads = threads;
      break;
    }
  }
  const unsigned warps = choice.threads / kWarp;
  choice.blocks = static_cast<unsigned>(std::clamp<std::uint64_t>((items + warps - 1) / warps, 1, bound));
}

std::uint64_t EngineRunBytes(MemoryPath path, const CopyLimits& limits) {
  if (limits.forced) return UINT64_MAX;
  switch (path) {
    case MemoryPath::kSameDevice:
    case MemoryPath::kNvlink: return std::uint64_t{16} << 20;
    case MemoryPath::kPciePeer:
    case MemoryPath::kHost: return std::uint64_t{1} << 20;
  }
  return std::uint64_t{16} << 20;
}

}  // namespace kvm
