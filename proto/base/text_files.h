// Reads small files of /proc and /sys as text, and looks up numbers in them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/error.h"

namespace kvm {

// Returns the whole file. kNotFound: there is no such file. kSystem: it can't be read.
[[nodiscard]] Result<std::string> ReadTextFile(const std::string& path);
// The number that `text` spells, with white space around it allowed; empty if it is none.
std::optional<std::uint64_t> ParseNumber(std::string_view text) noexcept;
// In a text of lines "name 123" or "name: 123 kB": the number in the first line with this name.
std::optional<std::uint64_t> NumberAfter(std::string_view text, std::string_view name) noexcept;

std::vector<std::string_view> SplitText(std::string_view text, char at);

}  // namespace kvm
