// LogSink: writes log lines to a descriptor that may accept them slowly, not at all, or be closed
// by its reader.
//
// A file is written at once. A descriptor with a reader (a pipe, a terminal, journald's socket) is
// written by a thread of its own, since such a write waits for the reader, and a thread that serves
// others must not wait. O_NONBLOCK does not help: the process that started this one shares the
// descriptor.
// Lines wait in a bounded queue; lines without room are dropped and counted, and the count is
// written once there is room again.
//
// Thread-safe. SIGPIPE is ignored by the process.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace kvm {

class LogSink {
 public:
  static constexpr std::size_t kMaxQueuedBytes = 256 * 1024;

  // `fd` belongs to the caller and stays open until all lines are written. `notice`: makes the line
  // that says how many were dropped.
  LogSink(int fd, std::function<std::string(std::uint64_t)> notice, std::size_t max_queued_bytes = kMaxQueuedBytes);
  // Does not wait for lines that have not been written.
  ~LogSink();
  LogSink(const LogSink&) = delete;
  LogSink& operator=(const LogSink&) = delete;

  // `line` ends with a newline. Never waits for a reader.
  void Write(std::string line);
  // Whether everything was written within `timeout`.
  bool Drain(std::chrono::milliseconds timeout);

 private:
  struct State;
  static void Run(const std::shared_ptr<State>& state);

  const bool at_once_;
  // Shared with the thread, which may stay inside a write for ever
  const std::shared_ptr<State> state_;
};

// This process's log: a sink of its stderr, made at the first call, for LogLine (log_line.h). A
// child that is forked has one of its own.
LogSink& ProcessLog();

}  // namespace kvm
