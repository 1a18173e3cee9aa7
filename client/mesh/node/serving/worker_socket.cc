#include "client/mesh/node/serving/worker_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "proto/base/start_lock.h"
#include "proto/base/unique_fd.h"

namespace kvm::mesh {
namespace {

using Local = boost::asio::local::stream_protocol;

Error Refused(Errc code, const std::string& what) { return MakeError(code, "--mesh-socket: " + what); }

// Removes the file of a process that has ended. Only ECONNREFUSED means that no process listens: a
// process that is busy, or that this one may not connect to, answers with other errors.
Status ClearPath(boost::asio::io_context& io, const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return SystemError("--mesh-socket: look at " + path);
  }
  if (!S_ISSOCK(info.st_mode)) return Refused(Errc::kAlreadyExists, path + " exists and is not a socket");
  boost::system::error_code error;
  Local::socket probe(io);
  probe.open(Local(), error);
  if (!error) probe.non_blocking(true, error);
  if (error) return SystemError("--mesh-socket: socket", error.value());
  probe.connect(Local::endpoint(path), error);
  // A full backlog is an answer, too.
  if (!error || error == boost::asio::error::would_block || error == boost::asio::error::try_again)
    return Refused(Errc::kAlreadyExists, "another kvmd-mesh listens on " + path);
  if (error != boost::asio::error::connection_refused) return SystemError("--mesh-socket: " + path + " exists, connect", error.value());
  if (::unlink(path.c_str()) != 0) return SystemError("--mesh-socket: remove the stale " + path);
  return {};
}

}  // namespace

Status WorkerSocket::Listen(const std::string& path) {
  if (path.size() >= sizeof(sockaddr_un::sun_path)) return Refused(Errc::kInvalidArgument, path + " is too long");
  const Result<StartLock> lock = StartLock::Take(path + ".lock");
  if (!lock) return Error{lock.error().code, "--mesh-socket: " + lock.error().message, lock.error().sys_errno};
  boost::asio::io_context probing;
  if (Status clear = ClearPath(probing, path); !clear) return clear;
  boost::system::error_code error;
  const mode_t before = ::umask(0177);
  acceptor_.open(Local(), error);
  if (!error) acceptor_.bind(Local::endpoint(path), error);
  ::umask(before);
  if (error) return SystemError("--mesh-socket: listen on " + path, error.value());
  path_ = path;
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return SystemError("--mesh-socket: look at " + path);
  device_ = info.st_dev;
  inode_ = info.st_ino;
  acceptor_.listen(boost::asio::socket_base::max_listen_connections, error);
  if (error) return SystemError("--mesh-socket: listen on " + path, error.value());
  return {};
}

// In another thread: connections that have not been accepted are closed with it, and what they have
// sent.
void WorkerSocket::CloseListener() noexcept {
  if (!acceptor_.is_open()) return;
  boost::system::error_code error;
  closer_.Close(::geteuid(), UniqueFd(acceptor_.release(error)));
}

void WorkerSocket::RemoveFile() noexcept {
  CloseListener();
  struct stat info {};
  if (!path_.empty() && ::lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_) ::unlink(path_.c_str());
  path_.clear();
}

}  // namespace kvm::mesh
