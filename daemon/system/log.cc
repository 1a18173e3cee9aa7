#include "daemon/system/log.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <utility>

#include "daemon/system/log_sink.h"

namespace kvm::daemon {
namespace {

constexpr double kBurstSeconds = 10;
constexpr std::chrono::seconds kTellLeftOut{5};  // how often, while lines are left out
constexpr std::size_t kMostSources = 4096;
constexpr std::size_t kMaxValueBytes = 256;

std::atomic<LogLevel> g_level{LogLevel::kInfo};
std::atomic<std::uint32_t> g_lines_a_second{20};
thread_local std::optional<std::uint32_t> g_user;

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

void SetLogLimit(std::uint32_t lines_a_second) { g_lines_a_second.store(lines_a_second, std::memory_order_relaxed); }

LogScope::LogScope(std::uint32_t uid) noexcept : before_(g_user) { g_user = uid; }
LogScope::~LogScope() { g_user = before_; }

bool LogBucket::Take(Time now, double rate) {
  const double most = rate * kBurstSeconds;
  if (lines_ < 0) {
    lines_ = most;
  } else {
    lines_ = std::min(most, lines_ + rate * std::chrono::duration<double>(now - filled_).count());
  }
  filled_ = now;
  if (lines_ < 1) {
    ++left_out_;
    return false;
  }
  lines_ -= 1;
  return true;
}

std::uint64_t LogBucket::TakeLeftOut(Time now) {
  if (left_out_ == 0 || now - told_ < kTellLeftOut) return 0;
  told_ = now;
  return std::exchange(left_out_, 0);
}

bool LogBucket::Full(Time now, double rate) const {
  return left_out_ == 0 && lines_ + rate * std::chrono::duration<double>(now - filled_).count() >= rate * kBurstSeconds;
}

void LogLimited(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  static std::map<std::string, LogBucket, std::less<>> of_event;
  static std::map<std::uint32_t, LogBucket> of_user;
  if (!LogEnabled(level)) return;
  const auto now = std::chrono::steady_clock::now();
  const double rate = g_lines_a_second.load(std::memory_order_relaxed);
  if (!g_user) {
    LogBucket& bucket = of_event[std::string(event)];
    const bool may = bucket.Take(now, rate);
    if (const std::uint64_t count = bucket.TakeLeftOut(now)) Log(LogLevel::kWarn, "log_lines_left_out", {{"of", event}, {"count", count}});
    if (may) Log(level, event, fields);
    return;
  }
  if (of_user.size() >= kMostSources) std::erase_if(of_user, [&](const auto& entry) { return entry.second.Full(now, rate); });
  LogBucket& bucket = of_user[*g_user];
  const bool may = bucket.Take(now, rate);
  if (const std::uint64_t count = bucket.TakeLeftOut(now))
    Log(LogLevel::kWarn, "log_lines_left_out", {{"uid", *g_user}, {"count", count}, {"limit", "--max-log-lines-per-user"}});
  if (may) Log(level, event, fields);
}

}  // namespace kvm::daemon
