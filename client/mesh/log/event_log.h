// kvmd-mesh's log: one line per event (proto/log/log_line.h) on stderr. No call waits for the
// reader of the log (proto/log/log_sink.h). Thread-safe.
#pragma once

#include <exception>
#include <initializer_list>
#include <string_view>

#include "proto/log/log_line.h"

namespace kvm::mesh {

void LogEvent(LogLevel level, std::string_view event, std::initializer_list<LogField> fields);

// An error whose reason is an exception of this process's own, mostly a lack of memory. Where there
// is none for the line either, it is written piece by piece, and may wait for the log's reader.
void LogException(std::string_view event, const std::exception& failed) noexcept;

}  // namespace kvm::mesh
