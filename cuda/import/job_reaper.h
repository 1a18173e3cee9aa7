// JobReaper: keeps import jobs whose ticket is destroyed before the copy has ended.
//
// A copy on a stream of the caller runs when that stream reaches it: late, or never if the caller
// blocks the stream. A destructor that waited for it would hang (I6: no call waits beyond its
// deadline), and one that did not wait would free memory that the GPU still writes. So the
// destructor waits for a limited time and then passes the job to a thread of the process. That
// thread polls the job, and destroys it once the copy has ended. A copy that never ends keeps its
// memory as long as the process lives. This file uses no CUDA.
#pragma once

#include <chrono>
#include <condition_variable>
#include <list>
#include <memory>

#include "cuda/memory_backend.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe.
class JobReaper {
 public:
  // The only instance of the process; never destroyed, since a copy may outlive everything else.
  static JobReaper& Get();
  JobReaper(const JobReaper&) = delete;
  JobReaper& operator=(const JobReaper&) = delete;

  // Never fails: a job that can't be watched (no thread, no memory) is kept for ever.
  void Take(std::unique_ptr<ImportJob> job) noexcept;
  std::size_t waiting() const;

 private:
  JobReaper() = default;
  void Run() KVM_EXCLUDES(mutex_);

  mutable Mutex mutex_;
  std::condition_variable taken_;
  bool running_ KVM_GUARDED_BY(mutex_) = false;
  std::size_t waiting_ KVM_GUARDED_BY(mutex_) = 0;  // including those that the thread is polling
  std::list<std::unique_ptr<ImportJob>> jobs_ KVM_GUARDED_BY(mutex_);
};

// Returns the same job with a destructor that waits at most `patience` and then passes it to the
// reaper. `job` must be safe to poll and to destroy on another thread.
[[nodiscard]] std::unique_ptr<ImportJob> EndedByReaper(std::unique_ptr<ImportJob> job, std::chrono::milliseconds patience);

}  // namespace kvm
