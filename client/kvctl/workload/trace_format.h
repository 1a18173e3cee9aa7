// What a file that is no trace looks like, so that its owner hears what is missing and not that some byte is wrong.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvm::ctl {

// Which formats are read, for messages and help.
extern const char* const kTraceFormats;

// What the beginning of a file says: compressed in a way that is not read, CSV, a JSON array. Nothing: it may be
// JSON lines.
std::optional<std::string> OtherFormat(std::string_view beginning);

}  // namespace kvm::ctl
