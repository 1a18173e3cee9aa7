// The parts of kvm/device.h that need no CUDA.
#include "kvm/device.h"

namespace kvm {

const char* MemoryPathName(MemoryPath path) noexcept {
  switch (path) {
    case MemoryPath::kSameDevice: return "same GPU";
    case MemoryPath::kNvlink: return "NVLink";
    case MemoryPath::kPciePeer: return "PCIe peer";
    case MemoryPath::kHost: return "host";
  }
  return "unknown";
}

std::string FormatUuid(const DeviceUuid& uuid) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[uuid[i] >> 4];
    text += kDigits[uuid[i] & 15];
  }
  return text;
}

Result<DeviceUuid> ParseUuid(std::string_view text) {
  const std::string_view whole = text;
  for (const std::string_view prefix : {"GPU-", "MIG-"}) {
    if (text.starts_with(prefix)) text.remove_prefix(prefix.size());
  }
  DeviceUuid uuid{};
  std::size_t digits = 0;
  for (const char c : text) {
    if (c == '-') continue;
    const char lower = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
    const bool decimal = lower >= '0' && lower <= '9';
    if ((!decimal && (lower < 'a' || lower > 'f')) || digits == 2 * uuid.size()) {
      digits = 0;
      break;
    }
    const auto value = static_cast<unsigned>(decimal ? lower - '0' : lower - 'a' + 10);
    uuid[digits / 2] = static_cast<std::uint8_t>(uuid[digits / 2] << 4 | value);
    ++digits;
  }
  if (digits != 2 * uuid.size()) return MakeError(Errc::kInvalidArgument, "not the UUID of a GPU: " + std::string(whole));
  return uuid;
}

}  // namespace kvm
