// The bytes of a trace in memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "client/kvctl/workload/line_reader.h"

namespace kvm::test {

// Gives at most `most` bytes at a time.
inline ctl::LineReader::Source BytesOf(std::string text, std::size_t most = 4096) {
  auto rest = std::make_shared<std::string>(std::move(text));
  return [rest, most](std::span<char> into) -> Result<std::size_t> {
    const std::size_t count = std::min({into.size(), rest->size(), most});
    std::memcpy(into.data(), rest->data(), count);
    rest->erase(0, count);
    return count;
  };
}

}  // namespace kvm::test
