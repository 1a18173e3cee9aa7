// What a replay's "prefill" writes: bytes that are a function of the block's key, so that whoever imports
// a block can tell whether every byte is the one its key promises.
#pragma once

#include <cstddef>
#include <span>

#include "kvm/block_key.h"

namespace kvm::ctl {

// `block`: 8-byte aligned, a multiple of 8 bytes.
void FillBlock(const BlockKey& key, std::span<std::byte> block) noexcept;
// Compares every byte.
bool BlockHolds(const BlockKey& key, std::span<const std::byte> block) noexcept;

}  // namespace kvm::ctl
