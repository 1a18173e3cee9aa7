// Turns libprotobuf's messages into log lines of kvmd.
#pragma once

namespace kvm::daemon {

// libprotobuf writes a line of any length to stderr for each string that is not UTF-8, so a client
// could fill the log. After this call such lines become `wire_message` events, limited by
// LogLimited. To be called once, before the first message.
void RouteWireLog();

}  // namespace kvm::daemon
