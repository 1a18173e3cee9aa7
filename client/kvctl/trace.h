// Request traces: JSON lines
//
//   {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [block ids]}
//
// one request a line, `block_tokens` tokens a block, other members ignored, empty lines skipped.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "client/kvctl/request.h"
#include "kvm/error.h"

namespace kvm::ctl {

struct TraceOptions {
  std::uint32_t block_tokens = 512;
  std::size_t limit_requests = 0;  // 0: all
};

// kNotFound: the file can't be opened. kInvalidArgument: "FILE:LINE: what is wrong" for the first bad
// line (not JSON, a member missing or out of range, a number of hash_ids that does not fit
// input_length), or a file without requests.
[[nodiscard]] Result<std::vector<Request>> ReadTrace(const std::string& path, const TraceOptions& options);

// The same from a stream; `name` stands for the file in messages.
[[nodiscard]] Result<std::vector<Request>> ParseTrace(std::istream& in, const std::string& name, const TraceOptions& options);

}  // namespace kvm::ctl
