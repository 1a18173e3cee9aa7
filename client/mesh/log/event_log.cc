#include "client/mesh/log/event_log.h"

#include <iostream>

#include "proto/log/log_sink.h"

namespace kvm::mesh {

void LogEvent(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  ProcessLog().Write(LogLine(level, event, fields));
}

void LogException(std::string_view event, const std::exception& failed) noexcept {
  try {
    LogEvent(LogLevel::kError, event, {{"reason", failed.what()}});
  } catch (const std::exception&) {
    std::cerr << LogPrefix(LogLevel::kError) << "event=" << event << " reason=\"" << failed.what() << "\"\n" << std::flush;
  }
}

}  // namespace kvm::mesh
