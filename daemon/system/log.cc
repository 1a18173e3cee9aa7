#include "daemon/system/log.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>

#include "daemon/system/log_sink.h"

namespace kvm::daemon {
namespace {

constexpr int kBurst = 50;
constexpr std::size_t kMaxValueBytes = 256;

std::atomic<LogLevel> g_level{LogLevel::kInfo};

bool NeedsQuotes(std::string_view value) {
  if (value.empty()) return true;
  for (const char c : value) {
    if (c <= ' ' || c == '"' || c == '\\' || c == '=' || static_cast<unsigned char>(c) >= 0x7f) return true;
  }
  return false;
}

void AppendValue(std::string& line, std::string_view value) {
  const bool cut = value.size() > kMaxValueBytes;
  if (cut) value = value.substr(0, kMaxValueBytes);
  if (!NeedsQuotes(value)) {
    line.append(value);
  } else {
    static constexpr char kHex[] = "0123456789abcdef";
    line.push_back('"');
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\') {
        line.push_back('\\');
        line.push_back(c);
      } else if (byte < ' ' || byte >= 0x7f) {
        line.append("\\x").append(1, kHex[byte >> 4]).append(1, kHex[byte & 15]);
      } else {
        line.push_back(c);
      }
    }
    line.push_back('"');
  }
  if (cut) line.append("...");
}

std::string WithPriority(LogLevel level, std::string line) {
  static const bool journal = std::getenv("JOURNAL_STREAM") != nullptr;
  if (journal) line.insert(0, "<" + std::to_string(static_cast<int>(level)) + ">");
  line.push_back('\n');
  return line;
}

// Never destroyed, since its thread may be in the middle of a line when the process ends.
LogSink& Sink() {
  static const auto new_sink = [] {
    return new LogSink(STDERR_FILENO, [](std::uint64_t count) {
      return WithPriority(LogLevel::kWarn,
                          FormatLogLine("log_lines_dropped", {{"count", count}, {"reason", "they were not read in time"}}));
    });
  };
  static LogSink* sink = new_sink();
  // A forked child does not have the sink's thread, and its copy of the sink's mutex may be locked
  // for ever.
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] { sink = new_sink(); });
  static_cast<void>(registered);
  return *sink;
}

}  // namespace

std::string_view LogLevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kError: return "error";
    case LogLevel::kWarn: return "warn";
    case LogLevel::kInfo: return "info";
    case LogLevel::kDebug: return "debug";
  }
  return "unknown";
}

void SetLogLevel(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
bool LogEnabled(LogLevel level) { return level <= g_level.load(std::memory_order_relaxed); }

std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields) {
  std::string line = "event=";
  line.append(event);
  for (const LogField& field : fields) {
    line.append(" ").append(field.key).append("=");
    AppendValue(line, field.value);
  }
  return line;
}

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  if (LogEnabled(level)) Sink().Write(WithPriority(level, FormatLogLine(event, fields)));
}

bool DrainLog(std::chrono::milliseconds timeout) { return Sink().Drain(timeout); }

void LogLimited(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  struct Window {
    std::chrono::steady_clock::time_point begin;
    int lines = 0;
    std::uint64_t left_out = 0;
  };
  static std::map<std::string, Window, std::less<>> windows;
  if (!LogEnabled(level)) return;
  Window& window = windows[std::string(event)];
  const auto now = std::chrono::steady_clock::now();
  if (now - window.begin > std::chrono::seconds(1)) {
    if (window.left_out > 0) Log(level, "log_lines_left_out", {{"of", event}, {"count", window.left_out}});
    window = Window{now, 0, 0};
  }
  if (++window.lines > kBurst) {
    ++window.left_out;
    return;
  }
  Log(level, event, fields);
}

}  // namespace kvm::daemon
