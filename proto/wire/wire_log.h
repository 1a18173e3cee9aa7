// Where libprotobuf's messages go.
#pragma once

#include <string>

namespace kvm {

// `warn`: it is more than information.
using WireLog = void (*)(bool warn, const std::string& text);

// libprotobuf writes a line of any length to stderr for each string that is not UTF-8, so whom a
// process reads messages of could fill its log. After this call such lines go to `log`, which any
// thread that reads a message may call, and which limits them. To be called once, before the first
// message.
void RouteWireLog(WireLog log);

}  // namespace kvm
