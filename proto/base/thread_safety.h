// Locks whose use clang checks while it compiles (-Wthread-safety): which mutex guards a member,
// which one a function needs, and which one must not be held when it is called. Other compilers see
// plain std::mutex.
//
// A member is marked KVM_GUARDED_BY(mutex_). A function that needs its caller to hold the lock is
// marked KVM_REQUIRES(mutex_). A function that locks by itself and is called from other classes is
// marked KVM_EXCLUDES(mutex_). The predicate of a wait is a function as well, and needs its mark:
//
//   changed_.wait(lock.native(), [this]() KVM_REQUIRES(mutex_) { return stopped_; });
//
// libstdc++'s std::mutex and std::unique_lock carry no annotations, hence the two classes here.
#pragma once

#include <mutex>

#if defined(__clang__)
#define KVM_THREAD_ANNOTATION(attribute) __attribute__((attribute))
#else
#define KVM_THREAD_ANNOTATION(attribute)
#endif

#define KVM_CAPABILITY(kind) KVM_THREAD_ANNOTATION(capability(kind))
#define KVM_SCOPED_CAPABILITY KVM_THREAD_ANNOTATION(scoped_lockable)
#define KVM_GUARDED_BY(mutex) KVM_THREAD_ANNOTATION(guarded_by(mutex))
#define KVM_PT_GUARDED_BY(mutex) KVM_THREAD_ANNOTATION(pt_guarded_by(mutex))
#define KVM_REQUIRES(...) KVM_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define KVM_EXCLUDES(...) KVM_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
#define KVM_ACQUIRE(...) KVM_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define KVM_RELEASE(...) KVM_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
// For the few places that lock and unlock in a way that the analysis can't follow; each says why.
#define KVM_NO_THREAD_SAFETY_ANALYSIS KVM_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace kvm {

class KVM_CAPABILITY("mutex") Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

 private:
  friend class MutexLock;
  std::mutex mutex_;
};

// Holds a mutex until its destruction, or between Lock and Unlock.
class KVM_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) KVM_ACQUIRE(mutex) : lock_(mutex.mutex_) {}
  ~MutexLock() KVM_RELEASE() {}
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  void Lock() KVM_ACQUIRE() { lock_.lock(); }
  void Unlock() KVM_RELEASE() { lock_.unlock(); }
  // For std::condition_variable, whose wait returns with the mutex locked again.
  std::unique_lock<std::mutex>& native() noexcept { return lock_; }

 private:
  std::unique_lock<std::mutex> lock_;
};

}  // namespace kvm
