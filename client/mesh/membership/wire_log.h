// Turns libprotobuf's messages into events of kvmd-mesh.
#pragma once

namespace kvm::mesh {

// libprotobuf writes a line of any length to stderr for each string that is not UTF-8, so a peer or
// a worker could fill the log. After this call such lines become `wire_message` events, one in ten
// seconds at most, with the number of those since the last one. To be called once, before the first
// message.
void RouteWireLog();

}  // namespace kvm::mesh
