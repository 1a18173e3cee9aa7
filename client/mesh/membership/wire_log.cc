#include "client/mesh/membership/wire_log.h"

#include <chrono>
#include <cstdint>

#include "client/mesh/membership/event_log.h"
#include "proto/base/thread_safety.h"

namespace kvm::mesh {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPause{10};

struct Limit {
  Mutex mutex;
  Clock::time_point next KVM_GUARDED_BY(mutex);
  std::uint64_t count KVM_GUARDED_BY(mutex) = 0;
};

}  // namespace

void LogWireMessage(bool /*warn*/, const std::string& text) {
  static Limit& limit = *new Limit;  // never destroyed: threads may read messages until the end
  MutexLock lock(limit.mutex);
  ++limit.count;
  const Clock::time_point now = Clock::now();
  if (now < limit.next) return;
  limit.next = now + kPause;
  LogEvent("wire_message", {{"reason", text}, {"times", std::to_string(limit.count)}});
  limit.count = 0;
}

}  // namespace kvm::mesh
