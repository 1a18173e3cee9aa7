#include "tests/support/mesh/mesh_process.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "proto/mesh/mesh_request.h"
#include "tests/catch.h"
#include "tests/support/mesh/loopback.h"
#include "tests/support/process/read_file.h"

namespace kvm::test {

std::string MeshBinary() { return KVM_MESH_BINARY; }

MeshProcess::MeshProcess(const TempDir& dir, const std::string& kvmd_socket, std::string node, const std::vector<std::string>& peers,
                         const std::vector<std::string>& environment, const std::vector<std::string>& options)
    : node_(std::move(node)), socket_(dir / ("mesh-" + node_ + ".sock")) {
  std::vector<std::string> arguments{"/usr/bin/env"};
  arguments.insert(arguments.end(), environment.begin(), environment.end());
  arguments.insert(arguments.end(), {MeshBinary(), "--node", node_, "--socket", kvmd_socket, "--mesh-socket", socket_});
  const std::vector<std::pair<std::string, std::string>> defaults{
      {"--listen", "127.0.0.1:0"}, {"--pull-interval-ms", "50"},    {"--pool-size", "1M"},
      {"--staging-size", "32K"},   {"--stall-timeout-ms", "30000"},
  };
  for (const auto& [name, value] : defaults)
    if (std::find(options.begin(), options.end(), name) == options.end()) arguments.insert(arguments.end(), {name, value});
  for (const std::string& peer : peers) arguments.insert(arguments.end(), {"--peers", peer});
  arguments.insert(arguments.end(), options.begin(), options.end());
  process_ = ChildProcess(arguments, dir / "mesh.log");
  const std::optional<std::string> line = process_.ReadLine(std::chrono::seconds(20));
  REQUIRE(line);
  address_ = line->substr(line->rfind(' ') + 1);
}

kvmmesh::Status StatusOf(const MeshProcess& mesh) {
  kvmmesh::LocalMessage request;
  request.mutable_status_query();
  const auto answer = mesh::AskMesh(mesh.socket(), request, std::chrono::steady_clock::now() + std::chrono::seconds(10));
  KVM_REQUIRE_OK(answer);
  return answer->status();
}

std::string LogOf(const KvmdProcess& kvmd) { return ReadFile(kvmd.dir() / "mesh.log"); }

UniqueFd ConnectTo(const std::string& address) {
  UniqueFd socket = ConnectToLoopback(static_cast<unsigned>(std::stoul(address.substr(address.rfind(':') + 1))));
  REQUIRE(socket);
  return socket;
}

UniqueFd ConnectToPath(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(path.size() < sizeof(address.sun_path));
  path.copy(address.sun_path, path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return socket;
}

ProcessEnd MeshProcess::Stop() {
  process_.Signal(SIGTERM);
  return process_.Wait(std::chrono::seconds(10)).value_or(ProcessEnd{});
}

}  // namespace kvm::test
