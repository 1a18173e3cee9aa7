#include "daemon/system/wire_log.h"

#include <google/protobuf/stubs/common.h>

#include <string>

// From version 22 on, protobuf logs through Abseil, and release builds do not log such strings.
#if GOOGLE_PROTOBUF_VERSION < 4022000
#define KVM_PROTOBUF_LOG_HANDLER
#include <google/protobuf/stubs/logging.h>
#endif

#include "daemon/system/log.h"

namespace kvm::daemon {

#ifdef KVM_PROTOBUF_LOG_HANDLER

namespace {

void LogWireMessage(google::protobuf::LogLevel level, const char* /*file*/, int /*line*/, const std::string& text) {
  const bool warn = level != google::protobuf::LOGLEVEL_INFO;
  LogLimited(warn ? LogLevel::kWarn : LogLevel::kDebug, "wire_message", {{"reason", text}});
}

}  // namespace

void RouteWireLog() { google::protobuf::SetLogHandler(&LogWireMessage); }

#else

void RouteWireLog() {}

#endif

}  // namespace kvm::daemon
