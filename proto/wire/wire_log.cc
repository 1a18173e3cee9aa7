#include "proto/wire/wire_log.h"

#include <google/protobuf/stubs/common.h>

// From version 22 on, protobuf logs through Abseil, and release builds do not log such strings.
#if GOOGLE_PROTOBUF_VERSION < 4022000
#define KVM_PROTOBUF_LOG_HANDLER
#include <google/protobuf/stubs/logging.h>
#endif

namespace kvm {

#ifdef KVM_PROTOBUF_LOG_HANDLER

namespace {

WireLog g_log = nullptr;

void Handle(google::protobuf::LogLevel level, const char* /*file*/, int /*line*/, const std::string& text) {
  g_log(level != google::protobuf::LOGLEVEL_INFO, text);
}

}  // namespace

void RouteWireLog(WireLog log) {
  g_log = log;
  google::protobuf::SetLogHandler(&Handle);
}

#else

void RouteWireLog(WireLog /*log*/) {}

#endif

}  // namespace kvm
