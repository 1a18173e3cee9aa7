// WritePace: keeps a thread that writes to a rate. Stop may be called from any thread; Wait from
// one.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>

#include "proto/base/thread_safety.h"

namespace kvm::mesh {

class WritePace {
 public:
  // 0: without a limit.
  explicit WritePace(std::uint64_t bytes_per_s) : bytes_per_s_(bytes_per_s) {}

  // Before `bytes` are written: waits until those before them have used up their time. False:
  // stopped.
  bool Wait(std::uint64_t bytes) KVM_EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    changed_.wait_until(lock.native(), next_, [this]() KVM_REQUIRES(mutex_) { return stopped_; });
    if (bytes_per_s_ > 0) {
      const std::chrono::duration<double> time(static_cast<double>(bytes) / static_cast<double>(bytes_per_s_));
      next_ = std::max(next_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(time);
    }
    return !stopped_;
  }
  void Stop() KVM_EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

 private:
  using Clock = std::chrono::steady_clock;

  const std::uint64_t bytes_per_s_;
  Mutex mutex_;
  std::condition_variable changed_;
  Clock::time_point next_ KVM_GUARDED_BY(mutex_){};
  bool stopped_ KVM_GUARDED_BY(mutex_) = false;
};

}  // namespace kvm::mesh
