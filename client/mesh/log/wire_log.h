// libprotobuf's messages as events of kvmd-mesh.
#pragma once

#include <string>

namespace kvm::mesh {

// A `wire_message` event, one in ten seconds at most, with the number of those since the last one.
// For RouteWireLog. Thread-safe.
void LogWireMessage(bool warn, const std::string& text);

}  // namespace kvm::mesh
