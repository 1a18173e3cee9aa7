// Request traces: JSON lines
//
//   {"timestamp": time, "input_length": tokens, "output_length": tokens, "hash_ids": [block ids]}
//
// one request a line, `block_tokens` tokens a block, as in the traces of Mooncake and Qwen-Bailian.
// "timestamp" and "output_length" may be missing, other members are ignored, empty lines skipped.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/kvctl/workload/line_reader.h"
#include "client/kvctl/workload/request.h"
#include "kvm/error.h"

namespace kvm::ctl {

// The unit of a timestamp. kAuto: seconds if one of the timestamps has a fraction, as in
// Qwen-Bailian's traces (61.114), else milliseconds, as in Mooncake's.
enum class TimestampUnit { kAuto, kSeconds, kMilliseconds, kMicroseconds };

struct TraceOptions {
  std::uint32_t block_tokens = 512;
  std::size_t limit_requests = 0;  // 0: all
  // empty: they are ignored, and Request::timestamp_us is 0
  std::optional<TimestampUnit> timestamps{};
};

// `path`: see OpenTraceFile. kInvalidArgument: "FILE:LINE: what is wrong" for the first bad line
// (not JSON, a member missing or out of range, a number of hash_ids that does not fit input_length,
// a timestamp missing where they are asked for), a file of another format, with the name of that
// format, or a file without requests. Also the errors of OpenTraceFile.
[[nodiscard]] Result<std::vector<Request>> ReadTrace(const std::string& path, const TraceOptions& options);

// The same from a source of bytes; `name` is the file's name in messages.
[[nodiscard]] Result<std::vector<Request>> ParseTrace(LineReader::Source source, const std::string& name, const TraceOptions& options);

}  // namespace kvm::ctl
