// Topology: the path from each GPU of this machine to each other GPU.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kvm/device.h"

namespace kvm {

// How one GPU reaches another one's memory.
struct LinkInfo {
  bool reachable = false;
  MemoryPath path = MemoryPath::kSameDevice;
  // Of the pair; 0: not NVLink, or NVML is missing, which counts them
  unsigned nvlinks = 0;
  // In 10^9 bytes per second, while the importer reads; 0: not measured
  double measured_gb_per_s = 0.0;
  std::string note;  // why not reachable, or what could not be found out
};

// The GPUs that this process sees, and the paths between them.
struct Topology {
  std::vector<DeviceInfo> devices;
  std::vector<LinkInfo> links;  // [importer * devices.size() + owner]

  // How `importer` reaches the memory of `owner`; both are indices into `devices`.
  const LinkInfo& Link(std::size_t importer, std::size_t owner) const { return links[importer * devices.size() + owner]; }
};

// Creates no context. kUnsupported as ListDevices.
[[nodiscard]] Result<Topology> ReadTopology();

// Copies between all reachable pairs, one after another, and fills in measured_gb_per_s. Uses some
// hundred MiB on each GPU and creates contexts; takes about 0.1 s a pair. The first error ends it:
// kUnsupported as ListDevices, kResourceExhausted, kSystem.
[[nodiscard]] Status MeasureTopology(Topology& topology);

}  // namespace kvm
