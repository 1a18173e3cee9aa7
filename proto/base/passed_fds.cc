#include "proto/base/passed_fds.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <sstream>
#include <utility>

namespace kvm {
namespace {

constexpr int kFirstPassedFd = 3;

// -1: `fd` is no socket.
int SocketOption(int fd, int option) noexcept {
  int value = -1;
  socklen_t size = sizeof(value);
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

}  // namespace

std::string TakeVariable(const char* name) {
  const char* value = std::getenv(name);
  std::string out = value == nullptr ? "" : value;
  ::unsetenv(name);
  return out;
}

std::vector<PassedFd> TakePassedFds() {
  std::vector<PassedFd> out;
  const std::string pid = TakeVariable("LISTEN_PID"), count = TakeVariable("LISTEN_FDS");
  std::istringstream names(TakeVariable("LISTEN_FDNAMES"));
  if (pid != std::to_string(::getpid())) return out;
  for (int i = 0; i < std::atoi(count.c_str()); ++i) {
    PassedFd passed;
    std::getline(names, passed.name, ':');
    passed.fd.Reset(kFirstPassedFd + i);
    ::fcntl(passed.fd.get(), F_SETFD, FD_CLOEXEC);
    out.push_back(std::move(passed));
  }
  return out;
}

bool IsListening(int fd) noexcept { return SocketOption(fd, SO_ACCEPTCONN) == 1 && SocketOption(fd, SO_TYPE) == SOCK_STREAM; }

bool IsListeningOnPath(int fd) noexcept { return IsListening(fd) && SocketOption(fd, SO_DOMAIN) == AF_UNIX; }

}  // namespace kvm
