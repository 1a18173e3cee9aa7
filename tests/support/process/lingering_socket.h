// A descriptor whose last close waits for an hour: a socket whose data is not read, with SO_LINGER.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <csignal>
#include <fstream>
#include <string>

#include "proto/base/unique_fd.h"
#include "tests/catch.h"
#include "tests/support/process/eventually.h"

namespace kvm::test {

struct LingeringSocket {
  LingeringSocket() {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
    REQUIRE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    REQUIRE(::listen(listener.get(), 1) == 0);
    socket.Reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int few = 4096;
    REQUIRE(::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &few, sizeof(few)) == 0);
    REQUIRE(::setsockopt(listener.get(), SOL_SOCKET, SO_RCVBUF, &few, sizeof(few)) == 0);
    REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), size) == 0);
    reader.Reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    REQUIRE(reader);
    const std::string bytes(1 << 16, 'x');
    while (::send(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) continue;
    const linger hour{1, 3600};
    REQUIRE(::setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &hour, sizeof(hour)) == 0);
  }
  UniqueFd socket, reader;
};

// Stops a process until Resume, so that the last descriptor of such a socket is the one that it is
// sent.
class StoppedProcess {
 public:
  explicit StoppedProcess(pid_t pid) : pid_(pid) {
    REQUIRE(::kill(pid, SIGSTOP) == 0);
    REQUIRE(Eventually([&] {
      std::string status;
      std::getline(std::ifstream("/proc/" + std::to_string(pid) + "/stat"), status);
      return status.find(") T ") != std::string::npos;
    }));
  }
  void Resume() { REQUIRE(::kill(pid_, SIGCONT) == 0); }

 private:
  const pid_t pid_;
};

}  // namespace kvm::test
