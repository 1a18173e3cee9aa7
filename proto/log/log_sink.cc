#include "proto/log/log_sink.h"

#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <string_view>
#include <utility>

#include "proto/base/detached_thread.h"
#include "proto/base/thread_safety.h"
#include "proto/log/log_line.h"

namespace kvm {
namespace {

bool IsFile(int fd) {
  struct stat info {};
  return ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
}

// Bytes that can't be written are lost: there is no other place to report that.
void WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

}  // namespace

struct LogSink::State {
  int fd = -1;
  std::size_t max_bytes = 0;
  std::function<std::string(std::uint64_t)> notice;

  Mutex mutex;
  std::condition_variable changed;
  std::deque<std::string> lines KVM_GUARDED_BY(mutex);
  std::size_t bytes KVM_GUARDED_BY(mutex) = 0;  // of lines, and of the one that is being written
  std::uint64_t dropped KVM_GUARDED_BY(mutex) = 0;
  bool running KVM_GUARDED_BY(mutex) = false;  // the thread
  bool stopped KVM_GUARDED_BY(mutex) = false;
};

LogSink::LogSink(int fd, std::function<std::string(std::uint64_t)> notice, std::size_t max_queued_bytes)
    : at_once_(IsFile(fd)), state_(std::make_shared<State>()) {
  state_->fd = fd;
  state_->max_bytes = max_queued_bytes;
  state_->notice = std::move(notice);
}

LogSink::~LogSink() {
  MutexLock lock(state_->mutex);
  state_->stopped = true;
  state_->changed.notify_all();
}

void LogSink::Write(std::string line) {
  if (at_once_) return WriteAll(state_->fd, line);
  MutexLock lock(state_->mutex);
  if (!state_->running) state_->running = StartDetached([state = state_] { Run(state); });
  if (!state_->running) {
    ++state_->dropped;  // the next Write tries again to start the thread
    return;
  }
  if (state_->bytes + line.size() > state_->max_bytes) {
    ++state_->dropped;
    return;
  }
  state_->bytes += line.size();
  state_->lines.push_back(std::move(line));
  state_->changed.notify_all();
}

bool LogSink::Drain(std::chrono::milliseconds timeout) {
  MutexLock lock(state_->mutex);
  return state_->changed.wait_for(lock.native(), timeout,
                                  [this]() KVM_REQUIRES(state_->mutex) { return state_->bytes == 0 && state_->dropped == 0; });
}

void LogSink::Run(const std::shared_ptr<State>& state) {
  MutexLock lock(state->mutex);
  for (;;) {
    state->changed.wait(lock.native(),
                        [&]() KVM_REQUIRES(state->mutex) { return state->stopped || !state->lines.empty() || state->dropped > 0; });
    if (state->stopped && state->lines.empty()) return;
    std::string line;
    // The dropped lines came after all that wait in the queue, so their count is written once the
    // queue is empty.
    const std::uint64_t dropped = state->lines.empty() ? std::exchange(state->dropped, 0) : 0;
    if (dropped > 0) {
      line = state->notice(dropped);
      state->bytes += line.size();
    } else {
      line = std::move(state->lines.front());
      state->lines.pop_front();
    }
    lock.Unlock();
    WriteAll(state->fd, line);
    lock.Lock();
    state->bytes -= line.size();
    state->changed.notify_all();
  }
}

// Never destroyed, since its thread may be in the middle of a line when the process ends.
LogSink& ProcessLog() {
  static const auto new_sink = [] {
    return new LogSink(STDERR_FILENO, [](std::uint64_t count) {
      return LogLine(LogLevel::kWarn, "log_lines_dropped", {{"count", count}, {"reason", "they were not read in time"}});
    });
  };
  static LogSink* sink = new_sink();
  // A forked child does not have the sink's thread, and its copy of the sink's mutex may be locked
  // for ever.
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] { sink = new_sink(); });
  static_cast<void>(registered);
  return *sink;
}

}  // namespace kvm
