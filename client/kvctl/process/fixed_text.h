// FixedText: text in a message of fixed size between kvctl's processes.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>

namespace kvm::ctl {

// Text that does not fit is cut off.
template <std::size_t kBytes>
struct FixedText {
  std::array<char, kBytes> bytes{};

  void Set(std::string_view text) noexcept {
    bytes.fill('\0');
    text.copy(bytes.data(), kBytes - 1);
  }
  std::string Get() const { return std::string(bytes.data(), ::strnlen(bytes.data(), kBytes)); }
  bool empty() const noexcept { return bytes[0] == '\0'; }
};

}  // namespace kvm::ctl
