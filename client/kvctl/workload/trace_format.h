// Recognises files in other formats, so that the error names the format instead of a wrong byte.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvm::ctl {

// The formats that kvctl reads, for messages and help.
extern const char* const kTraceFormats;

// The format that the beginning of a file shows: a compression that kvctl does not read, CSV, or a
// JSON array. Empty if it may be JSON lines.
std::optional<std::string> OtherFormat(std::string_view beginning);

}  // namespace kvm::ctl
