#include "client/mesh/log/event_log.h"

#include <algorithm>
#include <iostream>

namespace kvm::mesh {
namespace {

constexpr std::size_t kMaxValue = 300;

bool IsPlain(std::string_view value) {
  return !value.empty() &&
         std::all_of(value.begin(), value.end(), [](unsigned char c) { return c > ' ' && c <= '~' && c != '"' && c != '='; });
}

}  // namespace

std::string EventLine(std::string_view event, std::initializer_list<EventField> fields) {
  std::string out = "event=" + std::string(event);
  for (const auto& [key, whole] : fields) {
    const std::string_view value = std::string_view(whole).substr(0, kMaxValue);
    out.append(" ").append(key).append("=");
    if (IsPlain(value)) {
      out += value;
      continue;
    }
    out += '"';
    for (const char c : value) {
      if (c == '"' || c == '\\') out += '\\';
      out += c >= ' ' && c <= '~' ? c : '?';
    }
    out += '"';
  }
  return out + '\n';
}

void LogEvent(std::string_view event, std::initializer_list<EventField> fields) { std::cerr << EventLine(event, fields) << std::flush; }

void LogException(std::string_view event, const std::exception& failed) noexcept {
  std::cerr << "event=" << event << " reason=\"" << failed.what() << "\"\n" << std::flush;
}

}  // namespace kvm::mesh
