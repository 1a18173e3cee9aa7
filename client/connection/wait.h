// How libkvclient waits inside of calls: until a condition is true, until the caller's deadline, or
// until this thread is interrupted (kvclient/interrupt.h). Every wait on behalf of a caller uses
// these functions. The threads of libkvclient do not, and neither do waits that must not end early
// because memory is still being read.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <thread>

#include "kvclient/interrupt.h"
#include "kvclient/types.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Asks the innermost scope of this thread, if there is one. The caller must hold no lock that other
// threads wait for.
inline bool Interrupted() {
  InterruptScope* const scope = InterruptScope::Current();
  return scope != nullptr && scope->Ask();
}

// Waits like changed.wait_until(lock, deadline, done), and returns done(). It releases the lock
// while it asks the scope. clang's lock analysis can't see that `lock` is the lock that `done`
// requires, so it is off here; it checks `done` where `done` is written.
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

// False if interrupted before `time` was over.
inline bool Sleep(std::chrono::milliseconds time) {
  for (const Deadline end = After(time); std::chrono::steady_clock::now() < end;) {
    if (Interrupted()) return false;
    const InterruptScope* const scope = InterruptScope::Current();
    std::this_thread::sleep_until(scope == nullptr ? end : std::min(end, scope->next_question()));
  }
  return !Interrupted();
}

}  // namespace kvm
