#include "daemon/system/service_manager.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <utility>

namespace kvm::daemon {
namespace {

bool IsStored(const PassedFd& passed) { return passed.name.starts_with(kStoredPrefix); }

}  // namespace

ServiceManager ServiceManager::FromEnvironment() {
  ServiceManager manager;
  const std::string own_pid = std::to_string(::getpid());
  if (const char* path = std::getenv("NOTIFY_SOCKET"); path != nullptr && (path[0] == '/' || path[0] == '@')) {
    manager.queue_ = std::make_shared<NotifyQueue>(path);
    manager.has_notify_ = true;
  }
  // systemd 254 and newer say how much they store; older ones don't.
  const char* store = std::getenv("FDSTORE");
  manager.has_store_ = manager.has_notify_ && (store == nullptr || std::strcmp(store, "0") != 0);
  if (store != nullptr) manager.store_size_ = std::strtoull(store, nullptr, 10);
  const std::string watchdog = TakeVariable("WATCHDOG_USEC"), watchdog_pid = TakeVariable("WATCHDOG_PID");
  if (const long long period = std::atoll(watchdog.c_str()); period > 0 && (watchdog_pid.empty() || watchdog_pid == own_pid))
    manager.watchdog_ = std::chrono::microseconds(period);
  manager.passed_ = TakePassedFds();
  return manager;
}

void ServiceManager::Notify(const std::string& state) const {
  if (has_notify_) queue_->Send(NotifyQueue::kOwnLane, state);
}

UniqueFd ServiceManager::TakeListeningSocket() noexcept {
  for (PassedFd& passed : passed_) {
    if (passed.fd && !IsStored(passed)) return std::move(passed.fd);
  }
  return {};
}

std::vector<PassedFd> ServiceManager::TakeStored() noexcept {
  std::vector<PassedFd> out;
  for (PassedFd& passed : passed_) {
    if (passed.fd && IsStored(passed)) out.push_back(std::move(passed));
  }
  return out;
}

// FDPOLL=0: a pidfd is stored to be asked later whether its process has ended, not to be dropped
// when it has.
void ServiceManager::Store(std::uint32_t user, const std::string& name, int fd) const {
  if (has_store_) queue_->Send(user, "FDSTORE=1\nFDNAME=" + name + "\nFDPOLL=0\n", name, fd);
}

void ServiceManager::StoreOwned(std::uint32_t user, const std::string& name, UniqueFd fd) const {
  if (has_store_) queue_->SendOwned(user, "FDSTORE=1\nFDNAME=" + name + "\nFDPOLL=0\n", name, std::move(fd));
}

// What the service manager has not been told of need not be removed.
void ServiceManager::Remove(std::uint32_t user, const std::string& name) const {
  if (has_store_ && !queue_->Cancel(user, name)) queue_->Send(user, "FDSTOREREMOVE=1\nFDNAME=" + name + "\n");
}

void ServiceManager::AfterStored(std::uint32_t user, std::function<void()> then) const { queue_->After(user, std::move(then)); }

}  // namespace kvm::daemon
