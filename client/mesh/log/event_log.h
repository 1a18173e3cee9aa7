// Writes one line for an event to stderr, as kvmd does: `event=NAME key=value …`. Values that other
// processes choose are quoted and escaped, so that none can forge or break a line.
// docs/OPERATIONS.md has a row for each event. Thread-safe.
#pragma once

#include <exception>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace kvm::mesh {

using EventField = std::pair<std::string_view, std::string>;

std::string EventLine(std::string_view event, std::initializer_list<EventField> fields);
void LogEvent(std::string_view event, std::initializer_list<EventField> fields);

// An event whose reason is an exception of this process's own, mostly a lack of memory: so it
// allocates nothing.
void LogException(std::string_view event, const std::exception& failed) noexcept;

}  // namespace kvm::mesh
