#include "client/mesh/log/wire_log.h"

#include <chrono>

#include "client/mesh/log/event_log.h"
#include "client/mesh/log/line_limit.h"
#include "proto/base/thread_safety.h"

namespace kvm::mesh {
namespace {

constexpr std::chrono::seconds kPause{10};

struct Limit {
  Mutex mutex;
  LineLimit lines KVM_GUARDED_BY(mutex){kPause};
};

}  // namespace

void LogWireMessage(bool warn, const std::string& text) {
  static Limit& limit = *new Limit;  // never destroyed: threads may read messages until the end
  MutexLock lock(limit.mutex);
  if (const auto left_out = limit.lines.Take())
    LogEvent(warn ? LogLevel::kWarn : LogLevel::kInfo, "wire_message", {{"reason", text}, {"left_out", *left_out}});
}

}  // namespace kvm::mesh
