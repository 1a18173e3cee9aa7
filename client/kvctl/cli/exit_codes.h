// Exit codes of kvctl, for scripts. Part of its interface: documented in --help, never renumbered.
#pragma once

#include "kvm/error.h"

namespace kvm::ctl {

enum ExitCode : int {
  kHealthy = 0,
  kUsage = 1,        // bad options, files or keys
  kUnreachable = 2,  // no kvmd answers on the socket in time, or this user may not use it
  kUnhealthy = 3,    // kvmd answers, but something is wrong
  kInterrupted = 130,
};

// The exit code for an error.
constexpr ExitCode ExitFor(Errc code) noexcept {
  switch (code) {
    case Errc::kUnavailable:
    case Errc::kPermissionDenied:  // of the socket or its directory
    case Errc::kDeadlineExceeded: return kUnreachable;
    case Errc::kInvalidArgument:
    case Errc::kNotFound:
    case Errc::kUnsupported: return kUsage;
    case Errc::kCancelled: return kInterrupted;
    case Errc::kProtocol:
    case Errc::kVersionMismatch:
    case Errc::kAlreadyExists:
    case Errc::kResourceExhausted:
    case Errc::kModelMismatch:
    case Errc::kBadGeometry:
    case Errc::kStale:
    case Errc::kSystem: return kUnhealthy;
  }
  return kUnhealthy;
}

}  // namespace kvm::ctl
