// What a replay's "prefill" writes: bytes that are a function of the block's key, so that an importer can
// check every byte against the key.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvm/block_key.h"

namespace kvm::ctl {

// `bytes`: of the block, from `offset` on; both multiples of 8.
void FillBlock(const BlockKey& key, std::span<std::byte> bytes, std::uint64_t offset = 0) noexcept;
// Compares every byte.
bool BlockHolds(const BlockKey& key, std::span<const std::byte> bytes, std::uint64_t offset = 0) noexcept;

}  // namespace kvm::ctl
