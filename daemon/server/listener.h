// The socket that kvmd listens on: made here, or passed by the service manager.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

// Owns the descriptor until it is taken, and the socket's file. The destructor removes the file if
// it is still the one that was made here.
class Listener {
 public:
  // Binds and listens, non-blocking. A socket file on which no process answers is replaced; a lock
  // beside the socket (daemon/system/start_lock.h) keeps two kvmds from starting at once. `mode`:
  // octal.
  // kInvalidArgument: the path is too long. kAlreadyExists: another kvmd answers on it, or it is no
  // socket.
  // kSystem: the directory is missing, no permission, …
  [[nodiscard]] static Result<Listener> Open(const std::string& path, const std::string& mode);
  // Takes over a socket that listens already; its file belongs to the service manager.
  [[nodiscard]] static Result<Listener> FromFd(UniqueFd socket);

  Listener() = default;
  Listener(Listener&& other) noexcept { *this = std::move(other); }
  Listener& operator=(Listener&& other) noexcept;
  ~Listener() { RemoveFile(); }

  UniqueFd TakeSocket() noexcept { return std::move(socket_); }
  void RemoveFile() noexcept;

 private:
  UniqueFd socket_;
  std::string path_;  // empty: not ours to remove
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace kvm::daemon
