#include "client/connection/task_thread.h"

#include <system_error>
#include <utility>

#include "client/connection/wait.h"

namespace kvm {

void TaskThread::Post(std::function<void()> task) {
  std::lock_guard lock(mutex_);
  if (stopped_) return;
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error&) {
      return;  // no thread to be had: what was to be mapped is not found
    }
  }
  tasks_.push_back(std::move(task));
  ++posted_;
  changed_.notify_all();
}

Status TaskThread::Drain(Deadline deadline) {
  std::unique_lock lock(mutex_);
  const std::uint64_t target = posted_;
  if (!WaitUntil(changed_, lock, deadline, [&] { return stopped_ || finished_ >= target; }))
    return MakeError(Errc::kDeadlineExceeded, "peers' regions are still being mapped");
  if (finished_ < target) return MakeError(Errc::kCancelled, "client closed");
  return {};
}

void TaskThread::Stop() {
  std::deque<std::function<void()>> dropped;
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    dropped.swap(tasks_);
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void TaskThread::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopped_ || !tasks_.empty(); });
    if (stopped_) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it holds goes before it counts as finished
    lock.lock();
    ++finished_;
    changed_.notify_all();
  }
}

}  // namespace kvm
