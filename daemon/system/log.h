// Writes one line per event to stderr: `event=NAME key=value …`, values quoted where needed, so
// that nothing a client chose (a name, an error text) can forge or break a line. Under systemd each
// line begins with its syslog priority. Called from kvmd's one thread; the level may be set from
// any thread. No call waits for the reader of the log (daemon/system/log_sink.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
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

// For events that a client can cause at will: at most `kBurst` lines a second for each event, then
// a count of the lines left out.
void LogLimited(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// Waits until all lines are written, before the process ends. False: they were not read within
// `timeout`.
bool DrainLog(std::chrono::milliseconds timeout);

// The line without priority and newline; for tests.
std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields);

}  // namespace kvm::daemon
