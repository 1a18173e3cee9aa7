// What libprotobuf has to say about messages, as log lines of kvmd's own.
#pragma once

namespace kvm::daemon {

// By itself libprotobuf writes an unlimited line to stderr for each string that is not UTF-8: a client could fill the
// log with what it likes. From here on these are `wire_message` lines, limited as LogLimited limits. Once, before the
// first message.
void RouteWireLog();

}  // namespace kvm::daemon
