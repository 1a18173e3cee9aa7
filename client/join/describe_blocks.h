// What Client::DescribeBlocks does: tells kvmd-mesh the tokens of blocks, in messages of bounded
// size.
#pragma once

#include <cstdint>
#include <span>

#include "kvclient/client.h"

namespace kvm {

// See Client::DescribeBlocks.
Result<DescribeOutcome> DescribeBlocks(const ModelSpec& spec, std::span<const BlockKey> keys, std::span<const std::uint32_t> tokens,
                                       const DescribeOptions& options);

}  // namespace kvm
