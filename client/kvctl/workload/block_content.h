// The bytes that a replay's "prefill" writes. They are a function of the block's key, so that an
// importer can check every byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvm/block_key.h"

namespace kvm::ctl {

// `bytes`: the block's bytes from `offset` on; their number and `offset` are multiples of 8.
void FillBlock(const BlockKey& key, std::span<std::byte> bytes, std::uint64_t offset = 0) noexcept;
// Compares every byte.
bool BlockHolds(const BlockKey& key, std::span<const std::byte> bytes, std::uint64_t offset = 0) noexcept;

}  // namespace kvm::ctl
