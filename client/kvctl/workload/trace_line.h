// One line of a trace: a JSON object with the members that kvctl reads, of which it stores nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "kvm/error.h"

namespace kvm::ctl {

struct TraceLine {
  std::optional<double> timestamp;  // as it is written
  std::uint64_t input_tokens = 0;
  std::uint64_t output_tokens = 0;
  std::vector<std::uint64_t> hash_ids;  // at most kMaxRequestBlocks
};

// `with_timestamp`: else that member is not looked at, whatever it is. kInvalidArgument: what is wrong with the line.
[[nodiscard]] Result<TraceLine> ParseTraceLine(std::string_view line, bool with_timestamp);

}  // namespace kvm::ctl
