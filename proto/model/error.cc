#include "kvm/error.h"

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace kvm {

std::string_view ErrcName(Errc code) noexcept {
  switch (code) {
    case Errc::kInvalidArgument: return "invalid_argument";
    case Errc::kUnavailable: return "unavailable";
    case Errc::kDeadlineExceeded: return "deadline_exceeded";
    case Errc::kProtocol: return "protocol";
    case Errc::kVersionMismatch: return "version_mismatch";
    case Errc::kPermissionDenied: return "permission_denied";
    case Errc::kNotFound: return "not_found";
    case Errc::kAlreadyExists: return "already_exists";
    case Errc::kResourceExhausted: return "resource_exhausted";
    case Errc::kModelMismatch: return "model_mismatch";
    case Errc::kBadGeometry: return "bad_geometry";
    case Errc::kStale: return "stale";
    case Errc::kUnsupported: return "unsupported";
    case Errc::kSystem: return "system";
    case Errc::kCancelled: return "cancelled";
  }
  return "unknown";
}

std::string Error::ToString() const {
  if (sys_errno == 0) return message;
  return message + " (" + std::generic_category().message(sys_errno) + ")";
}

Error MakeError(Errc code, std::string message) { return Error{code, std::move(message), 0}; }

Error SystemError(std::string what) { return SystemError(std::move(what), errno); }

Error SystemError(std::string what, int sys_errno) { return Error{Errc::kSystem, std::move(what), sys_errno}; }

void throw_exception_from_error(const Error& error, const boost::source_location&) { throw std::runtime_error(error.ToString()); }

}  // namespace kvm
