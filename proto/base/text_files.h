// Small files of the kernel's, as text: read as a whole, and numbers looked up in them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/error.h"

namespace kvm {

// All of a file. kNotFound: there is none. kSystem: it can't be read.
[[nodiscard]] Result<std::string> ReadTextFile(const std::string& path);
// The number that `text` is, but for space around it.
std::optional<std::uint64_t> ParseNumber(std::string_view text) noexcept;
// The number behind `name` in a text of lines "name 123" or "name: 123 kB"; of the first such line.
std::optional<std::uint64_t> NumberAfter(std::string_view text, std::string_view name) noexcept;

std::vector<std::string_view> SplitText(std::string_view text, char at);

}  // namespace kvm
