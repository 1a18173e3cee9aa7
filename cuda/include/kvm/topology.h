// How each GPU of this machine reaches each other one.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kvm/device.h"

namespace kvm {

struct LinkInfo {
  bool reachable = false;
  MemoryPath path = MemoryPath::kSameDevice;
  unsigned nvlinks = 0;            // of the pair; 0: not NVLink, or NVML isn't there to count them
  double measured_gb_per_s = 0.0;  // importer reading; 0: not measured
  std::string note;                // why not reachable, or what could not be found out
};

struct Topology {
  std::vector<DeviceInfo> devices;
  std::vector<LinkInfo> links;  // [importer * devices.size() + owner]

  const LinkInfo& Link(std::size_t importer, std::size_t owner) const { return links[importer * devices.size() + owner]; }
};

// Creates no context. kUnsupported as ListDevices.
[[nodiscard]] Result<Topology> ReadTopology();

// Copies between all reachable pairs, one after another, and fills in measured_gb_per_s. Uses some
// hundred MiB on each GPU and creates contexts; takes about 0.1 s a pair.
[[nodiscard]] Status MeasureTopology(Topology& topology);

}  // namespace kvm
