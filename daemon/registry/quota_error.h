// The error of a quota that is used up: it names the limit and the option that sets it, so that an
// operator knows what to change. Called by every check of a quota.
#pragma once

#include <cstdint>
#include <string>

#include "kvm/error.h"

namespace kvm::daemon {

// kResourceExhausted: "WHAT: the limit is LIMIT (OPTION)".
inline Error Exhausted(const std::string& what, std::uint64_t limit, const char* option) {
  return MakeError(Errc::kResourceExhausted, what + ": the limit is " + std::to_string(limit) + " (" + option + ")");
}

}  // namespace kvm::daemon
