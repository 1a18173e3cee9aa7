// What /proc says of kvmd itself, and how kvmd learns that another process has ended.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

std::uint64_t ResidentBytes() noexcept;  // 0 if unknown
std::uint32_t OpenFds() noexcept;

// A pidfd of the process at the other end of `socket`, which polls readable once that process has
// ended. Not open if it can't be made (another PID namespace, the process has ended, no descriptors
// left); then only EOF on the connection shows the end. Kernels before 6.5 make it from `pid`; it
// is used only if the other end is still connected afterwards.
UniqueFd PeerPidFd(int socket, std::uint32_t pid) noexcept;
// What PeerPidFd does on kernels before 6.5.
UniqueFd PidFdByNumber(int socket, std::uint32_t pid) noexcept;

// Whether the process at the other end has closed, though what it sent before may not have been
// read yet.
bool HasHungUp(int socket) noexcept;
// Whether it has closed and is not waiting for an answer either.
bool HasGone(int socket) noexcept;

// Whether /proc/PID/uid_map or gid_map gives every user or group a number, as outside of user
// namespaces.
bool MapsEveryId(std::string_view map) noexcept;

// The numbers that stand for users and groups without one in a user namespace; empty where all have
// one, so that no number is ambiguous.
struct NamelessIds {
  std::optional<std::uint32_t> user, group;
  static const NamelessIds& OfThisNamespace();
};

// Whether the kernel's answer names one user. A process of a user that has no number in kvmd's user
// namespace shows as the overflow user, and so do all others of that kind. Where every user has a
// number, no user is refused. kPermissionDenied: it says why; `group`: the same of its group.
[[nodiscard]] Status CheckUser(const ucred& peer, bool group, const NamelessIds& nameless = NamelessIds::OfThisNamespace());

// WatchedProcess: a process whose connection has ended. It tells whether the process still runs.
class WatchedProcess {
 public:
  // `pidfd`: from PeerPidFd; may be not open. `ended`: the process is known to have ended.
  WatchedProcess(UniqueFd pidfd, bool ended) : pidfd_(std::move(pidfd)), ended_(ended) {}
  bool Ended() noexcept;
  void NoteEnd() noexcept { ended_ = true; }
  // Whether Ended() can ever become true.
  bool known() const noexcept { return ended_ || pidfd_; }
  int pidfd() const noexcept { return pidfd_.get(); }

 private:
  UniqueFd pidfd_;
  bool ended_;
};

}  // namespace kvm::daemon
