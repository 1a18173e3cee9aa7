// The service manager's protocols, without a library: readiness and watchdog (NOTIFY_SOCKET),
// socket activation (LISTEN_FDS), and the store that keeps descriptors over a restart (FDSTORE).
// Source: the man pages sd_notify(3), sd_listen_fds(3) and systemd.service(5).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/system/notify_queue.h"
#include "proto/base/passed_fds.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

// Not thread-safe. Does nothing without a service manager. Nothing here waits for it: what it does
// not take at once is sent when it does (notify_queue.h).
class ServiceManager {
 public:
  ServiceManager() = default;  // there is no service manager
  // Reads the service manager's variables and removes them from the environment. Once in a process.
  static ServiceManager FromEnvironment();

  // Sends "READY=1\nSTATUS=…" and the like.
  void Notify(const std::string& state) const;
  // How often it expects "WATCHDOG=1"; none: never.
  std::optional<std::chrono::microseconds> watchdog() const noexcept { return watchdog_; }

  UniqueFd TakeListeningSocket() noexcept;
  // The descriptors that an earlier process of this service stored.
  std::vector<PassedFd> TakeStored() noexcept;

  // Keeps a duplicate of `fd` until it is removed or the service is stopped. `name`: differs from
  // all that are stored, ASCII without colons, at most 255 bytes. `user`: whose it is;
  // NotifyQueue::kOwnLane: kvmd's. `fd` stays open until it is removed.
  void Store(std::uint32_t user, const std::string& name, int fd) const;
  // The same, and the manager's copy is the only one: `fd` is closed once it has been sent.
  void StoreOwned(std::uint32_t user, const std::string& name, UniqueFd fd) const;
  void Remove(std::uint32_t user, const std::string& name) const;
  // Runs `then` when the store knows of everything that was stored and removed for the user so far;
  // maybe at once.
  void AfterStored(std::uint32_t user, std::function<void()> then) const;
  // The same for what was stored and removed for anybody.
  void AfterAllStored(const std::function<void()>& then) const { queue_->AfterAll(then); }
  bool has_store() const noexcept { return has_store_; }
  // How many descriptors it stores; none: it does not say.
  std::optional<std::uint64_t> store_size() const noexcept { return store_size_; }

  NotifyQueue& queue() const noexcept { return *queue_; }

 private:
  std::shared_ptr<NotifyQueue> queue_ = std::make_shared<NotifyQueue>("");
  bool has_notify_ = false;
  bool has_store_ = false;
  std::optional<std::uint64_t> store_size_;
  std::optional<std::chrono::microseconds> watchdog_;
  std::vector<PassedFd> passed_;
};

// The names of kvmd's stored descriptors begin with this. A passed descriptor with any other name
// is a listening socket.
inline constexpr const char* kStoredPrefix = "kept.";

}  // namespace kvm::daemon
