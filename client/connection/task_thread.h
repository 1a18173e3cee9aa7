// TaskThread: a thread that runs tasks one after another, in the order in which they were posted.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "kvclient/types.h"
#include "proto/base/thread_safety.h"

namespace kvm {

// Thread-safe. The thread starts with the first task. Tasks must not wait for the thread itself.
// One that throws, for lack of memory, has ended.
class TaskThread {
 public:
  TaskThread() = default;
  ~TaskThread() { Stop(); }
  TaskThread(const TaskThread&) = delete;
  TaskThread& operator=(const TaskThread&) = delete;

  void Post(std::function<void()> task) KVM_EXCLUDES(mutex_);  // dropped after Stop
  // Waits until all tasks that were posted before have run. kDeadlineExceeded; kCancelled: stopped.
  [[nodiscard]] Status Drain(Deadline deadline) KVM_EXCLUDES(mutex_);
  // Waits for the running task, and drops the others.
  void Stop() KVM_EXCLUDES(mutex_);

 private:
  void Run() KVM_EXCLUDES(mutex_);

  Mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_ KVM_GUARDED_BY(mutex_);
  std::uint64_t posted_ KVM_GUARDED_BY(mutex_) = 0, finished_ KVM_GUARDED_BY(mutex_) = 0;
  bool stopped_ KVM_GUARDED_BY(mutex_) = false;
  // Started under the mutex, joined by Stop, after which it is never started again
  std::thread thread_;
};

}  // namespace kvm
