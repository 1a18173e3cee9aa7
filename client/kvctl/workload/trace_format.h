// Recognises files that are no traces, so that the message says what is missing and not which byte is wrong.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace kvm::ctl {

// Which formats are read, for messages and help.
extern const char* const kTraceFormats;

// What the beginning of a file shows: a compression that kvctl does not read, CSV, a JSON array. None: it may be JSON
// lines.
std::optional<std::string> OtherFormat(std::string_view beginning);

}  // namespace kvm::ctl
