// One request of a trace or of a generated workload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvm::ctl {

struct Request {
  std::uint64_t timestamp_us = 0;  // 0: a trace whose timestamps were not asked for
  std::uint64_t input_tokens = 0;  // of the prompt
  std::uint64_t output_tokens = 0;
  // One id per block of the prompt; the last block may be partly filled. An id names a block's content: two blocks are the
  // same if their ids and all ids before them are.
  std::vector<std::uint64_t> hash_ids;
};

// Limits that keep a damaged trace from being taken for a workload.
inline constexpr std::uint64_t kMaxRequestTokens = 64'000'000;
inline constexpr std::size_t kMaxRequestBlocks = std::size_t{1} << 21;  // 2 M tokens at 1 a block, 32 M at 16

}  // namespace kvm::ctl
