// The sockets that the exporter listens on: those that the service manager passes, or a Unix
// socket and TCP addresses of the loopback interface that it opens itself.
#pragma once

#include <string>
#include <vector>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::ctl {

// Sockets that listen. Removes the file of the Unix socket that it made. Movable.
class ListeningSockets {
 public:
  ListeningSockets() = default;
  ListeningSockets(ListeningSockets&& other) noexcept;
  ListeningSockets& operator=(ListeningSockets&& other) noexcept;
  ~ListeningSockets();

  // Those that the service manager passed (sd_listen_fds(3)), perhaps none. Reads its variables and
  // removes them from the environment. kInvalidArgument: one does not listen.
  [[nodiscard]] static Result<ListeningSockets> Passed();

  // Makes the socket file with this mode ("0660"); one on which no process answers is replaced.
  // kAlreadyExists: a process answers there, or the file is no socket. kInvalidArgument: the path,
  // or the mode.
  [[nodiscard]] Status ListenOnPath(const std::string& path, const std::string& mode);
  // "127.0.0.1:9464" or "[::1]:9464"; port 0: any. kInvalidArgument: no address of the loopback
  // interface.
  [[nodiscard]] Status ListenOnTcp(const std::string& address);

  bool empty() const noexcept { return sockets_.empty(); }
  // Where they listen, as text.
  const std::vector<std::string>& names() const noexcept { return names_; }
  // Who takes the sockets closes them.
  std::vector<UniqueFd> TakeSockets() noexcept { return std::move(sockets_); }

 private:
  std::vector<UniqueFd> sockets_;
  std::vector<std::string> names_;
  std::string path_;  // of the socket file that was made; empty: none
};

}  // namespace kvm::ctl
