// What the blocks of a simulation hold: a block's bytes follow from its key and its domain, so each
// copy tells whether it is what its key promises. Two domains have the same keys and other bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvm/block_key.h"
#include "proto/base/random.h"

namespace kvm::simulation {

inline constexpr std::uint32_t kWords = 16;
inline constexpr std::uint64_t kBlockBytes = kWords * sizeof(std::uint64_t);
// Of keys: even ones of one model, odd ones of the other
inline constexpr std::uint32_t kNumbers = 48;
inline constexpr std::uint32_t kChain = 8;  // blocks of a prefix

using BlockBytes = std::array<std::uint64_t, kWords>;

inline constexpr std::uint64_t kHonest = 0x486F6E657374, kLie = 0x4C6965;

// `kind`: kHonest, or kLie for what a hostile client publishes, whose bytes no check looks at.
inline BlockKey KeyOf(std::uint32_t number, std::uint64_t kind = kHonest) { return {Mix(kind, number), kind << 8 | number}; }
inline bool IsHonest(const BlockKey& key) { return key.hi >> 8 == kHonest; }
inline std::uint32_t NumberOf(const BlockKey& key) { return static_cast<std::uint32_t>(key.hi & 0xFF); }
inline std::uint32_t DepthOf(std::uint32_t number) { return number / 2 % kChain; }
inline std::uint64_t ParentOf(std::uint32_t number) { return DepthOf(number) == 0 ? 0 : KeyOf(number - 2).lo; }

inline std::uint64_t WordOf(std::uint32_t domain, const BlockKey& key, std::uint32_t word) { return Mix(key.lo + domain, word); }

inline void Fill(std::byte* to, std::uint32_t domain, const BlockKey& key, std::uint32_t from, std::uint32_t end) {
  for (std::uint32_t word = from; word < end; ++word) {
    const std::uint64_t value = WordOf(domain, key, word);
    std::memcpy(to + word * sizeof(value), &value, sizeof(value));
  }
}

inline bool Holds(const std::byte* block, std::uint32_t domain, const BlockKey& key) {
  for (std::uint32_t word = 0; word < kWords; ++word) {
    std::uint64_t value = 0;
    std::memcpy(&value, block + word * sizeof(value), sizeof(value));
    if (value != WordOf(domain, key, word)) return false;
  }
  return true;
}

}  // namespace kvm::simulation
