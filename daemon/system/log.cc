#include "daemon/system/log.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <utility>

#include "proto/log/log_sink.h"

namespace kvm::daemon {
namespace {

constexpr double kBurstSeconds = 10;
constexpr std::chrono::seconds kTellLeftOut{5};  // how often, while lines are left out
constexpr std::size_t kMostSources = 4096;

std::atomic<LogLevel> g_level{LogLevel::kInfo};
std::atomic<std::uint32_t> g_lines_a_second{20};
thread_local std::optional<std::uint32_t> g_user;

}  // namespace

void SetLogLevel(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
bool LogEnabled(LogLevel level) { return level <= g_level.load(std::memory_order_relaxed); }

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  if (LogEnabled(level)) ProcessLog().Write(LogLine(level, event, fields));
}

bool DrainLog(std::chrono::milliseconds timeout) { return ProcessLog().Drain(timeout); }

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
