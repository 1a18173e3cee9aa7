// Writes one line per event to stderr: `event=NAME key=value …`, values quoted where needed, so
// that nothing a client chose (a name, an error text) can forge or break a line. Under systemd each
// line begins with its syslog priority. Called from kvmd's one thread; the level may be set from
// any thread. No call waits for the reader of the log (daemon/system/log_sink.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace kvm::daemon {

enum class LogLevel { kError = 3, kWarn = 4, kInfo = 6, kDebug = 7 };  // syslog priorities

struct LogField {
  LogField(std::string_view key_, std::string_view value_) : key(key_), value(value_) {}
  LogField(std::string_view key_, const char* value_) : key(key_), value(value_) {}
  LogField(std::string_view key_, const std::string& value_) : key(key_), value(value_) {}
  LogField(std::string_view key_, std::uint64_t value_) : key(key_), value(std::to_string(value_)) {}
  LogField(std::string_view key_, std::uint32_t value_) : key(key_), value(std::to_string(value_)) {}
  LogField(std::string_view key_, int value_) : key(key_), value(std::to_string(value_)) {}

  std::string_view key;
  std::string value;
};

std::string_view LogLevelName(LogLevel level);
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

// The line without priority and newline; for tests.
std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields);

}  // namespace kvm::daemon
