#include "client/connection/task_thread.h"

#include <system_error>
#include <utility>

#include "client/connection/attempt.h"
#include "client/connection/wait.h"

namespace kvm {

void TaskThread::Post(std::function<void()> task) {
  MutexLock lock(mutex_);
  if (stopped_) return;
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error&) {
      return;  // no thread could be started: Find does not find the regions that were to be mapped
    }
  }
  tasks_.push_back(std::move(task));
  ++posted_;
  changed_.notify_all();
}

Status TaskThread::Drain(Deadline deadline) {
  MutexLock lock(mutex_);
  const std::uint64_t target = posted_;
  if (!WaitUntil(changed_, lock, deadline, [&]() KVM_REQUIRES(mutex_) { return stopped_ || finished_ >= target; }))
    return MakeError(Errc::kDeadlineExceeded, "peers' regions are still being mapped");
  if (finished_ < target) return MakeError(Errc::kCancelled, "client closed");
  return {};
}

void TaskThread::Stop() {
  std::deque<std::function<void()>> dropped;
  {
    MutexLock lock(mutex_);
    stopped_ = true;
    dropped.swap(tasks_);
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void TaskThread::Run() {
  MutexLock lock(mutex_);
  for (;;) {
    changed_.wait(lock.native(), [this]() KVM_REQUIRES(mutex_) { return stopped_ || !tasks_.empty(); });
    if (stopped_) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.Unlock();
    Attempt(task);
    task = nullptr;  // destroys what the task refers to before the task counts as finished
    lock.Lock();
    ++finished_;
    changed_.notify_all();
  }
}

}  // namespace kvm
