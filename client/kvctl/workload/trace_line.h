// Parses one line of a trace: a JSON object, of which only the members that kvctl uses are stored.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "kvm/error.h"

namespace kvm::ctl {

struct TraceLine {
  std::optional<double> timestamp;  // as written, without a unit
  std::uint64_t input_tokens = 0;
  std::uint64_t output_tokens = 0;
  std::vector<std::uint64_t> hash_ids;  // at most kMaxRequestBlocks
};

// `with_timestamp`: if false, the member "timestamp" is ignored, whatever its value.
// kInvalidArgument: the line is wrong; the message says why.
[[nodiscard]] Result<TraceLine> ParseTraceLine(std::string_view line, bool with_timestamp);

}  // namespace kvm::ctl
