// The real kvmd-mesh beside a kvmd of the test; killed at the end of the test.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kvclient/join.h"
#include "proto/base/unique_fd.h"
#include "proto/mesh/mesh.pb.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/process/child_process.h"

namespace kvm::test {

std::string MeshBinary();

// On a port of the loopback that the kernel chooses, and a Unix socket of its name in kvmd's
// directory.
class MeshProcess {
 public:
  // `kvmd`: anything with a directory and a socket. `peers`: NAME=ADDRESS. `environment`:
  // NAME=VALUE.
  template <class Kvmd>
  MeshProcess(const Kvmd& kvmd, std::string node, const std::vector<std::string>& peers = {},
              const std::vector<std::string>& environment = {}, const std::vector<std::string>& options = {})
      : MeshProcess(kvmd.dir(), kvmd.socket(), std::move(node), peers, environment, options) {}

  std::string socket() const { return socket_; }
  std::string address() const { return address_; }
  std::string as_peer() const { return node_ + "=" + address_; }
  pid_t pid() const noexcept { return process_.pid(); }
  bool running() { return process_.running(); }
  void Kill() { process_.Kill(); }
  ProcessEnd Stop();
  void Signal(int signal) { process_.Signal(signal); }

 private:
  MeshProcess(const TempDir& dir, const std::string& kvmd_socket, std::string node, const std::vector<std::string>& peers,
              const std::vector<std::string>& environment, const std::vector<std::string>& options);

  std::string node_, socket_, address_;
  ChildProcess process_;
};

// What the process says of itself and its peers.
kvmmesh::Status StatusOf(const MeshProcess& mesh);

// What mesh processes beside this kvmd have written to their log so far.
std::string LogOf(const KvmdProcess& kvmd);

// A connection to a port of the loopback, as MeshProcess::address has it.
UniqueFd ConnectTo(const std::string& address);

// A connection to a Unix socket, as MeshProcess::socket is one.
UniqueFd ConnectToPath(const std::string& path);

// Options of a join by way of `mesh`, with a deadline in `timeout` from now.
inline JoinOptions JoinBy(const MeshProcess& mesh, std::chrono::milliseconds timeout) {
  JoinOptions options;
  options.mesh_socket = mesh.socket();
  options.deadline = After(timeout);
  return options;
}

}  // namespace kvm::test
