// One request of a trace or of a generated workload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvm::ctl {

struct Request {
  std::uint64_t timestamp_us = 0;  // 0: the timestamps of the trace were not read
  std::uint64_t input_tokens = 0;  // of the prompt
  std::uint64_t output_tokens = 0;
  // One id per block of the prompt; the last block may be partly filled. An id names a block's
  // content: two blocks are the same if their ids and all ids before them are.
  std::vector<std::uint64_t> hash_ids;
};

// Limits above which a trace is taken to be damaged.
inline constexpr std::uint64_t kMaxRequestTokens = 64'000'000;
// 2 M tokens at 1 a block, 32 M at 16
inline constexpr std::size_t kMaxRequestBlocks = std::size_t{1} << 21;

}  // namespace kvm::ctl
