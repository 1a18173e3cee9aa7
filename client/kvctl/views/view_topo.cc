// kvctl topo: this machine's GPUs and the paths between them. Needs no kvmd.
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/views/topo_text.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {

int RunTopo(const CommonOptions& common, const TopoOptions& options) {
  Result<Topology> read = ReadTopology();
  // A machine without GPUs is no failure: scripts read "devices".
  const bool none = !read && read.error().code == Errc::kUnsupported;
  if (!read && !none) return Fail(read.error());
  Topology topology = read ? std::move(*read) : Topology();
  if (options.measure && !none) {
    if (Status measured = MeasureTopology(topology); !measured) return Fail(measured.error());
  }
  if (common.json) {
    boost::json::object object = TopologyJson(topology);
    object["cuda_toolkit"] = CudaToolkitVersion();
    object["reason"] = none ? read.error().message : "";
    PrintJson(std::move(object));
  } else if (none) {
    std::cout << "no GPUs: " << read.error().message << '\n';
  } else {
    PrintTopology(std::cout, topology);
  }
  return kHealthy;
}

}  // namespace kvm::ctl
