// The lines of a daemon's log: `event=NAME key=value …`, one for each event, values quoted where
// needed, so that nothing another process chose (a name, an error text) can forge or break a line.
// docs/OPERATIONS.md has a row for each event. Thread-safe.
#pragma once

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

namespace kvm {

enum class LogLevel { kError = 3, kWarn = 4, kInfo = 6, kDebug = 7 };  // syslog priorities

struct LogField {
  LogField(std::string_view key_, std::string_view value_) : key(key_), value(value_) {}
  LogField(std::string_view key_, const char* value_) : key(key_), value(value_) {}
  LogField(std::string_view key_, const std::string& value_) : key(key_), value(value_) {}
  LogField(std::string_view key_, std::integral auto value_) : key(key_), value(std::to_string(value_)) {}

  std::string_view key;
  std::string value;
};

std::string_view LogLevelName(LogLevel level);

// What a line begins with: "<4>" where stderr leads to systemd's journal, which takes it as the
// priority; else "".
std::string_view LogPrefix(LogLevel level) noexcept;

// A whole line, with prefix and newline. Values longer than 256 bytes are cut.
std::string LogLine(LogLevel level, std::string_view event, std::initializer_list<LogField> fields);

// The line without prefix and newline.
std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields);

}  // namespace kvm
