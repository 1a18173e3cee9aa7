// Errors of kvmd, libkvclient and kvctl: one value type, carried by Result<T>, never thrown.
//
// Exceptions of libraries are caught in the file that calls the library and become an Error there.
// The code that first decides that something is an error fills in the message; callers pass it on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <boost/system/result.hpp>

namespace kvm {

// What went wrong, in terms a program can act on. The numeric values are part of the wire protocol.
enum class Errc : std::uint16_t {
  // The caller's arguments contradict each other or exceed a documented limit
  kInvalidArgument = 1,
  kUnavailable = 2,        // kvmd is not reachable (not running, restarting, socket missing)
  kDeadlineExceeded = 3,   // the caller's deadline passed first
  kProtocol = 4,           // the peer sent bytes that break the protocol
  kVersionMismatch = 5,    // protocol or layout version differs
  kPermissionDenied = 6,   // the peer credentials do not allow it
  kNotFound = 7,           // no such model, region, block, file
  kAlreadyExists = 8,      // the name is taken by a live owner
  kResourceExhausted = 9,  // a table, quota, queue or memory is full
  kModelMismatch = 10,     // two ModelSpecs differ; the message names the first differing field
  kBadGeometry = 11,       // a region geometry overflows, overlaps or leaves its segments
  kStale = 12,             // a generation check failed: the block was rewritten meanwhile
  kUnsupported = 13,       // this build or machine can't do it; the message says what would
  kSystem = 14,            // a system call failed; `sys_errno` says how
  kCancelled = 15,         // the object was closed while the operation was waiting
};

// Stable lower-case name, for logs and `--json` ("invalid_argument", …).
std::string_view ErrcName(Errc code) noexcept;

// Why a call failed: a code for the program, and a text for people that names field, option or
// call.
struct Error {
  Errc code = Errc::kInvalidArgument;
  std::string message;
  int sys_errno = 0;  // errno of the failed call, 0 if none

  // "message (No such file or directory)", for people.
  std::string ToString() const;
};

// Outcome of an operation. Functions that return one are [[nodiscard]].
template <class T>
using Result = boost::system::result<T, Error>;
// Of calls that return nothing but whether they succeeded.
using Status = Result<void>;

// An error of this code.
Error MakeError(Errc code, std::string message);
// Takes errno at once; `what` names the call and its object ("open /run/kvmd/kvmd.sock").
Error SystemError(std::string what);
// The same for an error number that the caller has.
Error SystemError(std::string what, int sys_errno);

// Found by Boost when somebody calls `.value()` on an error: throws std::runtime_error.
[[noreturn]] void throw_exception_from_error(const Error& error, const boost::source_location& where);

}  // namespace kvm
