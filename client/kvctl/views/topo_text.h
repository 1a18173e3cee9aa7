// GPUs and the paths between them as kvctl shows them.
#pragma once

#include <boost/json/object.hpp>

#include <iosfwd>

#include "kvm/topology.h"

namespace kvm::ctl {

// The GPUs, then a matrix (a row imports from a column), then a line for each note. Prints "none"
// if there are no GPUs.
void PrintTopology(std::ostream& out, const Topology& topology);

// {"devices": […], "links": [{"importer", "owner", "reachable", "path", "nvlinks", "gb_per_s",
// "note"}, …]}; importer and owner are ordinals, path is null where not reachable, gb_per_s where
// not measured.
boost::json::object TopologyJson(const Topology& topology);

// "9.0" for 90.
std::string ComputeCapability(const DeviceInfo& device);

}  // namespace kvm::ctl
