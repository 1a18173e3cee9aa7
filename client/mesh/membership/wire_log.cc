#include "client/mesh/membership/wire_log.h"

#include <google/protobuf/stubs/common.h>

// From version 22 on, protobuf logs through Abseil, and release builds do not log such strings.
#if GOOGLE_PROTOBUF_VERSION < 4022000
#define KVM_PROTOBUF_LOG_HANDLER
#include <google/protobuf/stubs/logging.h>
#endif

#include <chrono>
#include <cstdint>
#include <string>

#include "client/mesh/membership/event_log.h"
#include "proto/base/thread_safety.h"

namespace kvm::mesh {

#ifdef KVM_PROTOBUF_LOG_HANDLER

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPause{10};

struct Limit {
  Mutex mutex;
  Clock::time_point next KVM_GUARDED_BY(mutex);
  std::uint64_t count KVM_GUARDED_BY(mutex) = 0;
};

// Called by any thread that reads a message.
void LogWireMessage(google::protobuf::LogLevel /*level*/, const char* /*file*/, int /*line*/, const std::string& text) {
  static Limit& limit = *new Limit;  // never destroyed: threads may read messages until the end
  MutexLock lock(limit.mutex);
  ++limit.count;
  const Clock::time_point now = Clock::now();
  if (now < limit.next) return;
  limit.next = now + kPause;
  LogEvent("wire_message", {{"reason", text}, {"times", std::to_string(limit.count)}});
  limit.count = 0;
}

}  // namespace

void RouteWireLog() { google::protobuf::SetLogHandler(&LogWireMessage); }

#else

void RouteWireLog() {}

#endif

}  // namespace kvm::mesh
