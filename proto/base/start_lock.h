// StartLock: prevents two processes, kvmd or kvmd-mesh, from starting on one socket at the same
// time. While it checks and makes the socket, the process holds a lock on a file that only its own
// user can open; it removes the file afterwards. (Any user could hold a lock on the directory, or
// on a file that others can open.)
#pragma once

#include <string>
#include <utility>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm {

class StartLock {
 public:
  // Waits some seconds for another process that is starting. kAlreadyExists: the other one still
  // holds the lock; the message names its process. kPermissionDenied: the file belongs to another
  // user, or is no plain file of mode 0600. kSystem: the directory is missing, no permission, …
  [[nodiscard]] static Result<StartLock> Take(const std::string& path);

  StartLock(StartLock&& other) noexcept : path_(std::exchange(other.path_, {})), file_(std::move(other.file_)) {}
  StartLock& operator=(StartLock&&) = delete;
  ~StartLock();

 private:
  StartLock(std::string path, UniqueFd file) noexcept : path_(std::move(path)), file_(std::move(file)) {}

  std::string path_;  // empty: moved from
  UniqueFd file_;
};

}  // namespace kvm
