#include "client/kvctl/internal_roles.h"

#include <charconv>
#include <cstring>
#include <string_view>

#include "client/kvctl/bench/bench_peer.h"
#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/process/channel.h"
#include "client/kvctl/process/roles.h"
#include "client/kvctl/replay/replay_worker.h"

namespace kvm::ctl {

std::optional<int> RunInternalRole(int argc, char** argv) {
  if (argc != 3) return std::nullopt;
  const std::string_view role = argv[1];
  const bool worker = role == kReplayWorkerRole, peer = role == kBenchPeerRole;
  if (!worker && !peer) return std::nullopt;
  int fd = -1;
  const char* end = argv[2] + std::strlen(argv[2]);
  if (std::from_chars(argv[2], end, fd).ptr != end || fd < 0) return kUsage;
  return worker ? RunReplayWorker(Channel(UniqueFd(fd))) : RunBenchPeer(Channel(UniqueFd(fd)));
}

}  // namespace kvm::ctl
