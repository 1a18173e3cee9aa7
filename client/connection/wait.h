// How libkvclient waits inside of calls: until something is so, until the caller's deadline, or until this thread is
// interrupted (kvclient/interrupt.h). Everything that waits on behalf of a caller waits by these. The threads of libkvclient's own
// and what must not be cut short (memory that is still being read) do not.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "kvclient/interrupt.h"
#include "kvclient/types.h"

namespace kvm {

// Asks the innermost scope of this thread, if there is one. No lock that others wait for may be held.
inline bool Interrupted() {
  InterruptScope* const scope = InterruptScope::Current();
  return scope != nullptr && scope->Ask();
}

// As changed.wait_until(lock, deadline, done), whose result is done(); gives the lock up while it asks.
template <class Done>
bool WaitUntil(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Deadline deadline, Done done) {
  InterruptScope* const scope = InterruptScope::Current();
  if (scope == nullptr) return changed.wait_until(lock, deadline, done);
  while (!done()) {
    lock.unlock();
    const bool interrupted = scope->Ask();
    lock.lock();
    if (interrupted || std::chrono::steady_clock::now() >= deadline) return done();
    changed.wait_until(lock, std::min(deadline, scope->next_question()), done);
  }
  return true;
}

// False: interrupted before `time` was over.
inline bool Sleep(std::chrono::milliseconds time) {
  for (const Deadline end = After(time); std::chrono::steady_clock::now() < end;) {
    if (Interrupted()) return false;
    const InterruptScope* const scope = InterruptScope::Current();
    std::this_thread::sleep_until(scope == nullptr ? end : std::min(end, scope->next_question()));
  }
  return !Interrupted();
}

}  // namespace kvm
