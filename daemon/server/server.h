// Server: the listening socket, the sessions and kvmd's timers. One thread runs all of it.
#pragma once

#include <memory>

#include "daemon/system/config.h"
#include "kvm/error.h"

namespace kvm::daemon {

class Server {
 public:
  // Binds the socket, or takes the one that systemd passed. kAlreadyExists: another kvmd answers on
  // it.
  // kSystem: the directory is missing, no permission, …
  [[nodiscard]] static Result<std::unique_ptr<Server>> Create(const Config& config);
  ~Server();

  // Serves until Stop() or SIGTERM/SIGINT, then says goodbye, drains and returns.
  [[nodiscard]] Status Run();
  void Stop();  // thread-safe

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvm::daemon
