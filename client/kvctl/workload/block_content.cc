#include "client/kvctl/workload/block_content.h"

#include <cstdint>
#include <cstring>

#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

// Word `i` of the block named `key`. Words also differ within a block, so that a block that was
// copied with a wrong offset, or from two sources, matches no key.
constexpr std::uint64_t Word(const BlockKey& key, std::uint64_t i) noexcept { return Mix(key.lo + i * 0x9E3779B97F4A7C15ULL) ^ key.hi; }

}  // namespace

void FillBlock(const BlockKey& key, std::span<std::byte> bytes, std::uint64_t offset) noexcept {
  for (std::size_t i = 0; i < bytes.size() / 8; ++i) {
    const std::uint64_t word = Word(key, offset / 8 + i);
    std::memcpy(bytes.data() + 8 * i, &word, 8);
  }
}

bool BlockHolds(const BlockKey& key, std::span<const std::byte> bytes, std::uint64_t offset) noexcept {
  std::uint64_t difference = 0;
  for (std::size_t i = 0; i < bytes.size() / 8; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + 8 * i, 8);
    difference |= word ^ Word(key, offset / 8 + i);
  }
  return difference == 0;
}

}  // namespace kvm::ctl
