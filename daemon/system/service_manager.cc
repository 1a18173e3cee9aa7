#include "daemon/system/service_manager.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <sstream>

namespace kvm::daemon {
namespace {

constexpr int kFirstPassedFd = 3;
constexpr timeval kPatience{0, 200'000};  // for a service manager that does not read

std::string Take(const char* variable) {
  const char* value = std::getenv(variable);
  std::string out = value == nullptr ? "" : value;
  ::unsetenv(variable);
  return out;
}

bool IsStored(const PassedFd& passed) { return passed.name.starts_with(kStoredPrefix); }

}  // namespace

ServiceManager ServiceManager::FromEnvironment() {
  ServiceManager manager;
  const std::string own_pid = std::to_string(::getpid());
  if (const char* path = std::getenv("NOTIFY_SOCKET"); path != nullptr && (path[0] == '/' || path[0] == '@')) manager.notify_path_ = path;
  // systemd 254 and newer say how many descriptors they store; older versions do not say it.
  const char* store = std::getenv("FDSTORE");
  manager.has_store_ = !manager.notify_path_.empty() && (store == nullptr || std::strcmp(store, "0") != 0);
  const std::string watchdog = Take("WATCHDOG_USEC"), watchdog_pid = Take("WATCHDOG_PID");
  if (const long long period = std::atoll(watchdog.c_str()); period > 0 && (watchdog_pid.empty() || watchdog_pid == own_pid))
    manager.watchdog_ = std::chrono::microseconds(period);
  const std::string pid = Take("LISTEN_PID"), count = Take("LISTEN_FDS");
  std::istringstream names(Take("LISTEN_FDNAMES"));
  if (pid != own_pid) return manager;
  for (int i = 0; i < std::atoi(count.c_str()); ++i) {
    PassedFd passed;
    std::getline(names, passed.name, ':');
    passed.fd.Reset(kFirstPassedFd + i);
    ::fcntl(passed.fd.get(), F_SETFD, FD_CLOEXEC);
    manager.passed_.push_back(std::move(passed));
  }
  return manager;
}

void ServiceManager::Notify(const std::string& state) const noexcept { Send(state, -1); }

bool ServiceManager::Send(const std::string& state, int fd) const noexcept {
  if (notify_path_.empty()) return false;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (notify_path_.size() >= sizeof(address.sun_path)) return false;
  std::memcpy(address.sun_path, notify_path_.data(), notify_path_.size());
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';  // abstract name
  const UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return false;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof(kPatience));
  iovec text{const_cast<char*>(state.data()), state.size()};
  msghdr message{};
  message.msg_name = &address;
  message.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + notify_path_.size());
  message.msg_iov = &text;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  return ::sendmsg(socket.get(), &message, MSG_NOSIGNAL) >= 0;
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

// FDPOLL=0: without it, systemd would drop a stored pidfd when its process ends, and the next kvmd
// could not ask whether it has.
bool ServiceManager::Store(const std::string& name, int fd) const noexcept {
  return has_store_ && Send("FDSTORE=1\nFDNAME=" + name + "\nFDPOLL=0\n", fd);
}

void ServiceManager::Remove(const std::string& name) const noexcept {
  if (has_store_) Send("FDSTOREREMOVE=1\nFDNAME=" + name + "\n", -1);
}

}  // namespace kvm::daemon
