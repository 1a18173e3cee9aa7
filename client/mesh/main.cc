// kvmd-mesh: parse, build, run.
#include <chrono>
#include <csignal>
#include <iostream>
#include <utility>
#include <vector>

#include "client/mesh/log/event_log.h"
#include "client/mesh/log/wire_log.h"
#include "client/mesh/node/mesh_node.h"
#include "client/mesh/node/state/config.h"
#include "proto/base/passed_fds.h"
#include "proto/base/standard_fds.h"
#include "proto/log/log_sink.h"
#include "proto/wire/wire_log.h"

namespace {

// How long kvmd-mesh waits, before it exits, for the reader of its log; lines that are not read by
// then are lost.
constexpr std::chrono::seconds kLastLines{1};

int Main(int argc, char** argv) {
  std::vector<kvm::PassedFd> passed = kvm::TakePassedFds();
  const kvm::mesh::ParsedArguments arguments = kvm::mesh::ParseArguments(argc, argv);
  if (arguments.exit) return arguments.exit_code;
  const auto read_peers = [argc, argv]() -> kvm::Result<std::vector<kvm::mesh::Member>> {
    const kvm::mesh::ParsedArguments again = kvm::mesh::ParseArguments(argc, argv);
    if (again.exit) return kvm::MakeError(kvm::Errc::kInvalidArgument, "the configuration is not good");
    return again.config.peers;
  };
  kvm::Result<std::unique_ptr<kvm::mesh::MeshNode>> node = kvm::mesh::MeshNode::Create(arguments.config, read_peers, std::move(passed));
  if (!node) {
    kvm::mesh::LogEvent(kvm::LogLevel::kError, "start_failed", {{"reason", node.error().ToString()}});
    return 1;
  }
  std::cout << "kvmd-mesh: node " << arguments.config.node << ", blocks over " << (*node)->way() << ", peers connect to "
            << (*node)->address() << std::endl;
  (*node)->Run();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  kvm::OpenStandardFds();
  std::signal(SIGPIPE, SIG_IGN);
  // A limit on files' sizes pauses the disk cache, and ends nothing.
  std::signal(SIGXFSZ, SIG_IGN);
  kvm::RouteWireLog(&kvm::mesh::LogWireMessage);
  const int code = Main(argc, argv);
  static_cast<void>(kvm::ProcessLog().Drain(kLastLines));
  return code;
}
