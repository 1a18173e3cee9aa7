// Timeouts of the Python interface: seconds from now; None for no limit.
#pragma once

#include <chrono>
#include <cmath>
#include <optional>

#include "client/python/src/errors.h"
#include "kvclient/types.h"

namespace kvm::python {

// kInvalidArgument: negative or not a number. A year or more means no limit.
inline Deadline ToDeadline(std::optional<double> timeout_s) {
  if (!timeout_s) return Deadline::max();
  if (std::isnan(*timeout_s) || *timeout_s < 0) Raise(MakeError(Errc::kInvalidArgument, "timeout_s is negative or not a number"));
  if (*timeout_s > 365.0 * 86400.0) return Deadline::max();
  return std::chrono::steady_clock::now() +
         std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(*timeout_s));
}

inline std::chrono::milliseconds ToMilliseconds(double seconds, const char* name) {
  if (std::isnan(seconds) || seconds < 0 || seconds > 86400.0) {
    Raise(MakeError(Errc::kInvalidArgument, std::string(name) + " is not between 0 and 86400 seconds"));
  }
  return std::chrono::milliseconds(std::llround(seconds * 1000));
}

}  // namespace kvm::python
