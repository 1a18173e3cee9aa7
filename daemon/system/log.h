// kvmd's log: one line per event (proto/log/log_line.h) on stderr, up to a level. Called from
// kvmd's one thread; the level may be set from any thread. No call waits for the reader of the log
// (proto/log/log_sink.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "proto/log/log_line.h"

namespace kvm::daemon {

using kvm::LogField;
using kvm::LogLevel;

void SetLogLevel(LogLevel level);
bool LogEnabled(LogLevel level);
void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// For events that a client can cause at will. Lines are counted for the user in whose name kvmd is
// at work (LogScope), else for the event: a user that has had its part is left out, with a count,
// and hides no line of another's.
void LogLimited(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// Lines a second that one user, or one event, may cause for long; ten times as many at once.
void SetLogLimit(std::uint32_t lines_a_second);

// While it lives, LogLimited counts for this user.
class LogScope {
 public:
  explicit LogScope(std::uint32_t uid) noexcept;
  ~LogScope();
  LogScope(const LogScope&) = delete;
  LogScope& operator=(const LogScope&) = delete;

 private:
  const std::optional<std::uint32_t> before_;
};

// Which of the lines that one source wants to write are written: `rate` a second, ten times as many
// at once.
class LogBucket {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // Whether a line may be written; else it is counted as left out.
  bool Take(Time now, double rate);
  // Lines left out that it is time to tell of; 0: none, or not yet.
  std::uint64_t TakeLeftOut(Time now);
  // Whether it is as good as new.
  bool Full(Time now, double rate) const;

 private:
  double lines_ = -1;  // it may write; less than 0: not used yet
  std::uint64_t left_out_ = 0;
  Time filled_{}, told_{};
};

// Waits until all lines are written, before the process ends. False: they were not read within
// `timeout`.
bool DrainLog(std::chrono::milliseconds timeout);

}  // namespace kvm::daemon
