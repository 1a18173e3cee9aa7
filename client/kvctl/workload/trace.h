// Request traces: JSON lines
//
//   {"timestamp": time, "input_length": tokens, "output_length": tokens, "hash_ids": [block ids]}
//
// one request a line, `block_tokens` tokens a block, as Mooncake's and Qwen-Bailian's traces are. "timestamp" and
// "output_length" may be missing, other members are ignored, empty lines skipped.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/kvctl/workload/line_reader.h"
#include "client/kvctl/workload/request.h"
#include "kvm/error.h"

namespace kvm::ctl {

// What a timestamp counts. kAuto: seconds if one of those that are read has a fraction, as Qwen-Bailian's have (61.114), else
// milliseconds, as Mooncake's are.
enum class TimestampUnit { kAuto, kSeconds, kMilliseconds, kMicroseconds };

struct TraceOptions {
  std::uint32_t block_tokens = 512;
  std::size_t limit_requests = 0;             // 0: all
  std::optional<TimestampUnit> timestamps{};  // nothing: they are not looked at, and Request::timestamp_us is 0
};

// `path`: as OpenTraceFile takes it. kInvalidArgument: "FILE:LINE: what is wrong" for the first bad line (not JSON, a member missing
// or out of range, a number of hash_ids that does not fit input_length, a timestamp missing where they are asked for), a file of
// another format, with what it lacks, or one without requests. Else OpenTraceFile's errors.
[[nodiscard]] Result<std::vector<Request>> ReadTrace(const std::string& path, const TraceOptions& options);

// The same from a source of bytes; `name` stands for the file in messages.
[[nodiscard]] Result<std::vector<Request>> ParseTrace(LineReader::Source source, const std::string& name, const TraceOptions& options);

}  // namespace kvm::ctl
