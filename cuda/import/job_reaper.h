// Import jobs that their caller lets go of before the copy has ended.
//
// A copy on a stream of the caller's runs when that stream gets there: late, or never if the caller itself holds it up. A
// destructor that waited for it would hang (I6), and one that did not would free what the GPU still writes. So it waits
// for a time and then hands the job on: a thread of the process's, asleep between two looks, keeps all that the job
// needs until the copy has ended, and destroys it then. A copy that never ends keeps its memory for as long as the
// process lives. No CUDA.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <vector>

#include "cuda/memory_backend.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe.
class JobReaper {
 public:
  // The process's; never destroyed, since a copy may outlast everything else.
  static JobReaper& Get();
  JobReaper(const JobReaper&) = delete;
  JobReaper& operator=(const JobReaper&) = delete;

  // Never fails: a job that nobody can watch (no thread, no memory) is kept for ever.
  void Take(std::unique_ptr<ImportJob> job) noexcept;
  std::size_t waiting() const;

 private:
  JobReaper() = default;
  void Run() KVM_EXCLUDES(mutex_);

  mutable Mutex mutex_;
  std::condition_variable taken_;
  bool running_ KVM_GUARDED_BY(mutex_) = false;
  std::size_t waiting_ KVM_GUARDED_BY(mutex_) = 0;  // with those that the thread is looking at
  std::vector<std::unique_ptr<ImportJob>> jobs_ KVM_GUARDED_BY(mutex_);
};

// The same job, whose destruction waits `patience` at most and then leaves it to the reaper. `job` must be safe to poll
// and to destroy on another thread.
[[nodiscard]] std::unique_ptr<ImportJob> EndedByReaper(std::unique_ptr<ImportJob> job, std::chrono::milliseconds patience);

}  // namespace kvm
