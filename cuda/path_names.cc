// The parts of devices.h and topology.h that need no CUDA.
#include "cuda/topology.h"

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

}  // namespace kvm
