// The service manager's protocols, without a library: readiness and watchdog (NOTIFY_SOCKET),
// socket activation (LISTEN_FDS), and the store that keeps descriptors over a restart (FDSTORE).
// Source: the man pages sd_notify(3), sd_listen_fds(3) and systemd.service(5).
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "proto/base/unique_fd.h"

namespace kvm::daemon {

struct PassedFd {
  std::string name;
  UniqueFd fd;
};

// Not thread-safe. Does nothing without a service manager.
class ServiceManager {
 public:
  ServiceManager() = default;  // there is no service manager
  // Reads the service manager's variables and removes them from the environment. Once in a process.
  static ServiceManager FromEnvironment();

  // Sends "READY=1\nSTATUS=…" and the like.
  void Notify(const std::string& state) const noexcept;
  // How often the service manager expects "WATCHDOG=1"; empty: never.
  std::optional<std::chrono::microseconds> watchdog() const noexcept { return watchdog_; }

  UniqueFd TakeListeningSocket() noexcept;
  // The descriptors that an earlier process of this service stored.
  std::vector<PassedFd> TakeStored() noexcept;

  // Stores a duplicate of `fd` with the service manager, until it is removed or the service is
  // stopped. `name`: differs from all that are stored, ASCII without colons, at most 255 bytes.
  // False: there is no store, or it refused the descriptor.
  bool Store(const std::string& name, int fd) const noexcept;
  void Remove(const std::string& name) const noexcept;
  bool has_store() const noexcept { return has_store_; }

 private:
  bool Send(const std::string& state, int fd) const noexcept;

  std::string notify_path_;
  bool has_store_ = false;
  std::optional<std::chrono::microseconds> watchdog_;
  std::vector<PassedFd> passed_;
};

// The names of kvmd's stored descriptors begin with this. A passed descriptor with any other name
// is a listening socket.
inline constexpr const char* kStoredPrefix = "kept.";

}  // namespace kvm::daemon
