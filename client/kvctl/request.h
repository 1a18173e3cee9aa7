// One request of a trace or of a generated workload.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvm::ctl {

struct Request {
  std::uint64_t timestamp_ms = 0;  // since the start of the trace
  std::uint64_t input_tokens = 0;  // of the prompt
  std::uint64_t output_tokens = 0;
  // One id per block of the prompt; the last block may be partly filled. An id names a block's content
  // together with everything before it.
  std::vector<std::uint64_t> hash_ids;
};

// Limits that keep a damaged trace from being taken for a workload.
inline constexpr std::uint64_t kMaxRequestTokens = 64'000'000;
inline constexpr std::size_t kMaxRequestBlocks = 16'384;  // 8 M tokens at 512 a block

}  // namespace kvm::ctl
