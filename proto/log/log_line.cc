#include "proto/log/log_line.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace kvm {
namespace {

constexpr std::size_t kMaxValueBytes = 256;

// systemd names the stream in $JOURNAL_STREAM, "DEVICE:INODE", which children inherit although
// their stderr may be another one.
bool StderrIsJournal() noexcept {
  const char* const stream = std::getenv("JOURNAL_STREAM");
  struct stat info {};
  unsigned long long device = 0, inode = 0;
  return stream != nullptr && std::sscanf(stream, "%llu:%llu", &device, &inode) == 2 && ::fstat(STDERR_FILENO, &info) == 0 &&
         device == info.st_dev && inode == info.st_ino;
}

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

std::string_view LogPrefix(LogLevel level) noexcept {
  static const bool journal = StderrIsJournal();
  if (!journal) return "";
  switch (level) {
    case LogLevel::kError: return "<3>";
    case LogLevel::kWarn: return "<4>";
    case LogLevel::kInfo: return "<6>";
    case LogLevel::kDebug: return "<7>";
  }
  return "";
}

std::string FormatLogLine(std::string_view event, std::initializer_list<LogField> fields) {
  std::string line = "event=";
  line.append(event);
  for (const LogField& field : fields) {
    line.append(" ").append(field.key).append("=");
    AppendValue(line, field.value);
  }
  return line;
}

std::string LogLine(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  std::string line(LogPrefix(level));
  line.append(FormatLogLine(event, fields)).push_back('\n');
  return line;
}

}  // namespace kvm
