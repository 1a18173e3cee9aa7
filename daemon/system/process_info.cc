#include "daemon/system/process_info.h"

#include <dirent.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "proto/base/text_files.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace kvm::daemon {

namespace {

constexpr std::uint32_t kUsualOverflowId = 65'534;

// The number that stands for users or groups without one in this user namespace. Empty: all have
// one, so that the number is that of a user like the others ("nobody").
std::optional<std::uint32_t> NamelessId(const char* map, const char* overflow) {
  const Result<std::string> ids = ReadTextFile(map);
  // Without the file the kernel has no user namespaces.
  if (ids ? MapsEveryId(*ids) : ids.error().code == Errc::kNotFound) return std::nullopt;
  const Result<std::string> text = ReadTextFile(overflow);
  return static_cast<std::uint32_t>(text ? ParseNumber(*text).value_or(kUsualOverflowId) : kUsualOverflowId);
}

}  // namespace

std::uint64_t ResidentBytes() noexcept {
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  unsigned long long total = 0, resident = 0;
  const int got = std::fscanf(file, "%llu %llu", &total, &resident);
  std::fclose(file);
  return got == 2 ? resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) : 0;
}

std::uint32_t OpenFds() noexcept {
  // Linux 6.2 and newer: without a walk over all of them.
  struct stat info {};
  if (::stat("/proc/self/fd", &info) == 0 && info.st_size > 0) return static_cast<std::uint32_t>(info.st_size);
  DIR* directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return 0;
  std::uint32_t count = 0;
  while (const dirent* entry = ::readdir(directory)) count += entry->d_name[0] != '.';
  ::closedir(directory);
  return count > 0 ? count - 1 : 0;  // without the directory's own
}

// A PID may have been reused by the time the pidfd is made, but not while the original process
// holds its end of the connection. So this checks after making the pidfd that the connection is
// still open.
UniqueFd PidFdByNumber(int socket, std::uint32_t pid) noexcept {
  if (pid == 0) return {};
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0)));
  pollfd peer{socket, POLLRDHUP, 0};
  const bool there = ::poll(&peer, 1, 0) == 0 || (peer.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) == 0;
  return there ? std::move(pidfd) : UniqueFd();
}

UniqueFd PeerPidFd(int socket, std::uint32_t pid) noexcept {
  int fd = -1;
  socklen_t size = sizeof(fd);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) == 0) return UniqueFd(fd);
  if (errno != ENOPROTOOPT) return {};  // the kernel knows the option, so its refusal is final
  return PidFdByNumber(socket, pid);
}

bool HasHungUp(int socket) noexcept {
  pollfd peer{socket, POLLRDHUP, 0};
  return ::poll(&peer, 1, 0) == 1 && (peer.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool HasGone(int socket) noexcept {
  pollfd peer{socket, 0, 0};
  return ::poll(&peer, 1, 0) == 1 && (peer.revents & (POLLHUP | POLLERR)) != 0;
}

bool MapsEveryId(std::string_view map) noexcept {
  std::uint64_t ids = 0;
  for (const std::string_view line : SplitText(map, '\n')) {
    const std::size_t at = line.find_last_of(' ');
    if (at != std::string_view::npos) ids += ParseNumber(line.substr(at)).value_or(0);
  }
  return ids >= std::numeric_limits<std::uint32_t>::max();  // 2^32 - 1 is no user
}

const NamelessIds& NamelessIds::OfThisNamespace() {
  static const NamelessIds ids{NamelessId("/proc/self/uid_map", "/proc/sys/kernel/overflowuid"),
                               NamelessId("/proc/self/gid_map", "/proc/sys/kernel/overflowgid")};
  return ids;
}

Status CheckUser(const ucred& peer, bool group, const NamelessIds& nameless) {
  const bool user = peer.uid == nameless.user;
  if (!user && (!group || peer.gid != nameless.group)) return {};
  return MakeError(Errc::kPermissionDenied,
                   std::string(user ? "user " : "group ") + std::to_string(user ? peer.uid : peer.gid) +
                       " is what the kernel shows for all that kvmd's user namespace has no number for, so it can't tell them apart");
}

bool WatchedProcess::Ended() noexcept {
  if (ended_ || !pidfd_) return ended_;
  pollfd poll_fd{pidfd_.get(), POLLIN, 0};
  ended_ = ::poll(&poll_fd, 1, 0) == 1 && (poll_fd.revents & POLLIN) != 0;
  return ended_;
}

}  // namespace kvm::daemon
