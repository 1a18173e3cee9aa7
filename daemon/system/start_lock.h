// Prevents two kvmds from starting on one socket at the same time: kvmd locks a file that only its own user
// can open while it checks and makes the socket, and removes the file afterwards. (Any user could hold a
// lock on the directory, or on a file that others can open.)
#pragma once

#include <string>
#include <utility>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

class StartLock {
 public:
  // Waits some seconds for another kvmd that is starting. kAlreadyExists: it still is; the message names its process.
  // kPermissionDenied: the file is another user's, or something else. kSystem: the directory is missing, no permission, …
  [[nodiscard]] static Result<StartLock> Take(const std::string& path);

  StartLock(StartLock&& other) noexcept : path_(std::exchange(other.path_, {})), file_(std::move(other.file_)) {}
  StartLock& operator=(StartLock&&) = delete;
  ~StartLock();

 private:
  StartLock(std::string path, UniqueFd file) noexcept : path_(std::move(path)), file_(std::move(file)) {}

  std::string path_;  // empty: moved from
  UniqueFd file_;
};

}  // namespace kvm::daemon
