// How libkvclient waits inside of calls: until something is so, until the caller's deadline, or
// until this thread is interrupted (kvclient/interrupt.h). Everything that waits on behalf of a
// caller waits by these. The threads of libkvclient's own and what must not be cut short (memory
// that is still being read) do not.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <thread>

#include "kvclient/interrupt.h"
#include "kvclient/types.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Asks the innermost scope of this thread, if there is one. No lock that others wait for may be
// held.
inline bool Interrupted() {
  InterruptScope* const scope = InterruptScope::Current();
  return scope != nullptr && scope->Ask();
}

// As changed.wait_until(lock, deadline, done), whose result is done(); gives the lock up while it
// asks. The analysis of locks does not know that `lock` is what `done` requires; it checks `done`
// itself where it is written.
template <class Done>
bool WaitUntil(std::condition_variable& changed, MutexLock& lock, Deadline deadline, Done done) KVM_NO_THREAD_SAFETY_ANALYSIS {
  InterruptScope* const scope = InterruptScope::Current();
  if (scope == nullptr) return changed.wait_until(lock.native(), deadline, done);
  while (!done()) {
    lock.Unlock();
    const bool interrupted = scope->Ask();
    lock.Lock();
    if (interrupted || std::chrono::steady_clock::now() >= deadline) return done();
    changed.wait_until(lock.native(), std::min(deadline, scope->next_question()), done);
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
