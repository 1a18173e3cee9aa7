// libprotobuf's messages as log lines of kvmd.
#pragma once

#include <string>

namespace kvm::daemon {

// A `wire_message` event, limited by LogLimited. For RouteWireLog.
void LogWireMessage(bool warn, const std::string& text);

}  // namespace kvm::daemon
