// WorkerSocket: the Unix socket on which a mesh process listens for the workers of its node, and
// its file. The file is of this user only, and is removed at the end.
#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <string>

#include "kvm/error.h"
#include "proto/base/descriptor_closer.h"

namespace kvm::mesh {

class WorkerSocket {
 public:
  using Acceptor = boost::asio::local::stream_protocol::acceptor;

  explicit WorkerSocket(boost::asio::io_context& io) : acceptor_(io) {}
  ~WorkerSocket() { RemoveFile(); }
  WorkerSocket(const WorkerSocket&) = delete;
  WorkerSocket& operator=(const WorkerSocket&) = delete;

  // Replaces the file of a process that has ended. kAlreadyExists: a process listens there, or the
  // file is no socket. kSystem: it can't be established that no process listens (no permission, …);
  // the file stays then. kInvalidArgument: the path is too long.
  [[nodiscard]] Status Listen(const std::string& path);
  Acceptor& acceptor() noexcept { return acceptor_; }
  // Closes the socket, too. A file that another process has put there since stays.
  void RemoveFile() noexcept;

 private:
  void CloseListener() noexcept;

  DescriptorCloser closer_;
  Acceptor acceptor_;
  std::string path_;  // empty: no file
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace kvm::mesh
