// Descriptors that the service manager passes to a process that it starts: sockets that listen, and
// what an earlier process of the service has stored. Source: the man page sd_listen_fds(3).
#pragma once

#include <string>
#include <vector>

#include "proto/base/unique_fd.h"

namespace kvm {

struct PassedFd {
  std::string name;
  UniqueFd fd;  // closed on exec
};

// Removes a variable from the environment and returns its value; empty: there is none.
std::string TakeVariable(const char* name);

// Reads LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES and removes them from the environment, so that no
// child takes them for its own. None if they are meant for another process. Once in a process,
// while it has one thread and has opened nothing.
std::vector<PassedFd> TakePassedFds();

// Whether it is a stream socket that listens, of any family.
bool IsListening(int fd) noexcept;
// The same, and a Unix socket, so that the permissions of a file say who may connect.
bool IsListeningOnPath(int fd) noexcept;

}  // namespace kvm
