// Turns libprotobuf's messages into log lines of kvmd.
#pragma once

namespace kvm::daemon {

// By itself libprotobuf writes a line of any length to stderr for each string that is not UTF-8, so a client
// could fill the log. After this call these are `wire_message` lines, limited by LogLimited. Call it once,
// before the first message.
void RouteWireLog();

}  // namespace kvm::daemon
