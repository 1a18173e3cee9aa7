// A thread that runs tasks one after another, in the order they came.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "kvclient/types.h"

namespace kvm {

// Thread-safe. The thread starts with the first task. Tasks must not wait for the thread itself.
class TaskThread {
 public:
  TaskThread() = default;
  ~TaskThread() { Stop(); }
  TaskThread(const TaskThread&) = delete;
  TaskThread& operator=(const TaskThread&) = delete;

  void Post(std::function<void()> task);  // dropped after Stop
  // Waits until everything posted before has run. kDeadlineExceeded; kCancelled: stopped.
  [[nodiscard]] Status Drain(Deadline deadline);
  // Waits for the task that is running, drops the others.
  void Stop();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::uint64_t posted_ = 0, finished_ = 0;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace kvm
