// Writes one line for an event to stderr, as kvmd does: `event=NAME key=value …`. Values that other
// processes choose are quoted and escaped, so that none can forge or break a line.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace kvm::mesh {

using EventField = std::pair<std::string_view, std::string>;

std::string EventLine(std::string_view event, std::initializer_list<EventField> fields);
void LogEvent(std::string_view event, std::initializer_list<EventField> fields);

}  // namespace kvm::mesh
