// A build without ZeroMQ: there are no events.
#include "client/mesh/events/node_events.h"

namespace kvm::mesh {

Result<std::unique_ptr<NodeEvents>> StartEvents(const EventSettings&, const std::string&) {
  return MakeError(Errc::kUnsupported, "--events: this kvmd-mesh was built without ZeroMQ (libzmq3-dev, cppzmq-dev)");
}

}  // namespace kvm::mesh
