#include "daemon/server/listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "proto/base/start_lock.h"

namespace kvm::daemon {
namespace {

constexpr int kBacklog = 4096;  // the kernel takes less, if net.core.somaxconn is

Error Refused(Errc code, const std::string& what) { return MakeError(code, "--socket: " + what); }

Result<UniqueFd> NewSocket() {
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return SystemError("--socket: socket");
  return socket;
}

// Makes room for a new socket file.
Status ClearPath(const std::string& path, const sockaddr_un& address) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return SystemError("--socket: look at " + path);
  }
  if (!S_ISSOCK(info.st_mode)) return Refused(Errc::kAlreadyExists, path + " exists and is not a socket");
  Result<UniqueFd> probe = NewSocket();
  if (!probe) return probe.error();
  // A full backlog (EAGAIN) is an answer, too.
  const bool connected = ::connect(probe->get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  if (connected || errno == EAGAIN) return Refused(Errc::kAlreadyExists, "another kvmd answers on " + path);
  if (errno != ECONNREFUSED) return SystemError("--socket: " + path + " exists, connect");
  if (::unlink(path.c_str()) != 0) return SystemError("--socket: remove the stale " + path);
  return {};
}

}  // namespace

Result<Listener> Listener::Open(const std::string& path, const std::string& mode) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return Refused(Errc::kInvalidArgument, "the path must have 1.." + std::to_string(sizeof(address.sun_path) - 1) + " bytes: " + path);
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const Result<StartLock> lock = StartLock::Take(path + ".lock");
  if (!lock) return Error{lock.error().code, "--socket: " + lock.error().message, lock.error().sys_errno};
  if (Status clear = ClearPath(path, address); !clear) return clear.error();

  Listener listener;
  Result<UniqueFd> socket = NewSocket();
  if (!socket) return socket.error();
  listener.socket_ = std::move(*socket);
  const int fd = listener.socket_.get();
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return SystemError("--socket: bind " + path);
  listener.path_ = path;
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return SystemError("--socket: look at " + path);
  listener.device_ = info.st_dev;
  listener.inode_ = info.st_ino;
  // Before listen(), so that no client connects while the file has the umask's mode.
  if (::chmod(path.c_str(), static_cast<mode_t>(std::strtoul(mode.c_str(), nullptr, 8))) != 0)
    return SystemError("--socket-mode: chmod " + path);
  if (::listen(fd, kBacklog) != 0) return SystemError("--socket: listen on " + path);
  return listener;
}

Result<Listener> Listener::FromFd(UniqueFd socket) {
  int listening = 0, domain = 0, type = 0;
  socklen_t size = sizeof(int);
  const bool readable = ::getsockopt(socket.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 &&
                        ::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
                        ::getsockopt(socket.get(), SOL_SOCKET, SO_TYPE, &type, &size) == 0;
  if (!readable || listening == 0 || domain != AF_UNIX || type != SOCK_STREAM)
    return MakeError(Errc::kInvalidArgument, "the service manager passed something that is no listening Unix stream socket");
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK) != 0) return SystemError("fcntl on the passed socket");
  Listener listener;
  listener.socket_ = std::move(socket);
  return listener;
}

Listener& Listener::operator=(Listener&& other) noexcept {
  RemoveFile();
  socket_ = std::move(other.socket_);
  path_ = std::exchange(other.path_, {});
  device_ = other.device_;
  inode_ = other.inode_;
  return *this;
}

void Listener::RemoveFile() noexcept {
  struct stat info {};
  if (!path_.empty() && ::lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_) ::unlink(path_.c_str());
  path_.clear();
}

}  // namespace kvm::daemon
