#include "daemon/system/wire_log.h"

#include "daemon/system/log.h"

namespace kvm::daemon {

void LogWireMessage(bool warn, const std::string& text) {
  LogLimited(warn ? LogLevel::kWarn : LogLevel::kDebug, "wire_message", {{"reason", text}});
}

}  // namespace kvm::daemon
