// What /proc says of kvmd itself, and watching for the end of another process.
#pragma once

#include <cstdint>

#include <utility>

#include "proto/base/unique_fd.h"

namespace kvm::daemon {

std::uint64_t ResidentBytes() noexcept;  // 0 if unknown
std::uint32_t OpenFds() noexcept;

// A pidfd of the process at the other end of `socket`, which polls readable once that has ended; none if that can't be
// had (another PID namespace, it has ended already, no descriptors left): EOF then is the only sign. Kernels before 6.5
// are asked by `pid`, which is believed only while the other end is there to have it.
UniqueFd PeerPidFd(int socket, std::uint32_t pid) noexcept;
// The old kernels' way.
UniqueFd PidFdByNumber(int socket, std::uint32_t pid) noexcept;

// User of the process that connected; nobody's (2^32 - 1) if the kernel does not say.
std::uint32_t PeerUid(int socket) noexcept;

// A process that has let go of its connection, to ask whether it runs on.
class WatchedProcess {
 public:
  // `pidfd`: of PeerPidFd, or none. `ended`: it is known to have.
  WatchedProcess(UniqueFd pidfd, bool ended) : pidfd_(std::move(pidfd)), ended_(ended) {}
  bool Ended() noexcept;
  void NoteEnd() noexcept { ended_ = true; }
  // Whether Ended() will ever tell.
  bool known() const noexcept { return ended_ || pidfd_; }
  int pidfd() const noexcept { return pidfd_.get(); }

 private:
  UniqueFd pidfd_;
  bool ended_;
};

}  // namespace kvm::daemon
