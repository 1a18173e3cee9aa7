// NVML's interface is stable and small enough here to be declared by hand: its header does not come
// with every toolkit installation.
#include "cuda/topology/nvml.h"

#include <dlfcn.h>

namespace kvm {
namespace {

using NvmlDevice = void*;
constexpr int kSuccess = 0, kP2pNvlink = 2, kP2pOk = 0;
constexpr unsigned kMaxLinks = 18, kFeatureEnabled = 1;

struct Nvml {
  int (*Init)() = nullptr;
  int (*DeviceByPci)(const char*, NvmlDevice*) = nullptr;
  int (*P2pStatus)(NvmlDevice, NvmlDevice, int, int*) = nullptr;
  int (*LinkState)(NvmlDevice, unsigned, unsigned*) = nullptr;
  bool usable = false;

  Nvml() {
    void* library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    Init = reinterpret_cast<decltype(Init)>(::dlsym(library, "nvmlInit_v2"));
    DeviceByPci = reinterpret_cast<decltype(DeviceByPci)>(::dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"));
    P2pStatus = reinterpret_cast<decltype(P2pStatus)>(::dlsym(library, "nvmlDeviceGetP2PStatus"));
    LinkState = reinterpret_cast<decltype(LinkState)>(::dlsym(library, "nvmlDeviceGetNvLinkState"));
    usable = Init != nullptr && DeviceByPci != nullptr && P2pStatus != nullptr && LinkState != nullptr && Init() == kSuccess;
  }
};

const Nvml& Library() {
  static const Nvml& nvml = *new Nvml();
  return nvml;
}

NvmlDevice Find(const std::string& pci) {
  NvmlDevice device = nullptr;
  return Library().usable && Library().DeviceByPci(pci.c_str(), &device) == kSuccess ? device : nullptr;
}

}  // namespace

std::optional<bool> NvmlPeersOverNvlink(const std::string& pci_a, const std::string& pci_b) {
  const NvmlDevice a = Find(pci_a), b = Find(pci_b);
  int status = 0;
  if (a == nullptr || b == nullptr || Library().P2pStatus(a, b, kP2pNvlink, &status) != kSuccess) return std::nullopt;
  return status == kP2pOk;
}

std::optional<unsigned> NvmlActiveLinks(const std::string& pci) {
  const NvmlDevice device = Find(pci);
  if (device == nullptr) return std::nullopt;
  unsigned active = 0;
  for (unsigned link = 0; link < kMaxLinks; ++link) {
    unsigned state = 0;
    if (Library().LinkState(device, link, &state) == kSuccess && state == kFeatureEnabled) ++active;
  }
  return active;
}

}  // namespace kvm
