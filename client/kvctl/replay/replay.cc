// The replay command around Replay(): requests from a trace or a generator, a kvmd to run on, the
// report.
#include "client/kvctl/replay/replay.h"

#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/process/interrupt.h"
#include "client/kvctl/process/node_guard.h"
#include "client/kvctl/process/private_kvmd.h"

namespace kvm::ctl {
namespace {

// Regions are preallocated; better to say so here than to have a worker fail.
Status CheckSizes(const ReplayOptions& options) {
  if (options.block_bytes % 8 != 0) return MakeError(Errc::kInvalidArgument, "--block-bytes has to be a multiple of 8");
  if (options.host_cache_bytes > 0 && !options.private_kvmd)
    return MakeError(Errc::kInvalidArgument, "--host-cache is the private kvmd's: add --private");
  return {};
}

PrivateKvmdOptions KvmdFor(const ReplayOptions& options) {
  PrivateKvmdOptions kvmd;
  kvmd.program = options.kvmd_program;
  const std::uint64_t blocks = std::uint64_t{options.workers} * options.pool_blocks + options.host_cache_bytes / options.block_bytes;
  kvmd.max_entries = std::max<std::uint64_t>(blocks, 1024);
  if (options.host_cache_bytes > 0) {
    kvmd.arguments = {"--host-cache", std::to_string(options.host_cache_bytes), "--host-cache-policy",
                      std::string(policy::PolicyName(options.host_cache_policy))};
  }
  return kvmd;
}

// The kvmds of others that the run is on.
std::vector<std::string> Sockets(const CommonOptions& common, const ReplayOptions& options) {
  if (options.nodes.empty()) return {common.socket};
  std::vector<std::string> sockets;
  for (const ReplayNode& node : options.nodes) sockets.push_back(node.socket);
  return sockets;
}

Status CheckRoomOn(const std::string& socket, std::chrono::milliseconds timeout, std::uint64_t blocks) {
  const Result<Observer> observer = ConnectDespiteRestart(socket, timeout);
  if (!observer) return observer.error();
  const Status room = CheckRoom(*observer, blocks);
  if (room) return {};
  return MakeError(room.error().code, room.error().message + "; take fewer --pool-blocks, or --private");
}

// On the nodes' kvmds. Workers go on without them, so their end shows here, and not in the figures.
Status NothingLeft(const CommonOptions& common, const ReplayOptions& options) {
  for (const std::string& socket : Sockets(common, options)) {
    if (Status left = CheckNothingLeft(socket, common.timeout(), {ReplayRegionPrefix(), ""}); !left) return left;
  }
  return {};
}

}  // namespace

int RunReplay(const CommonOptions& common, const ReplayOptions& options) {
  if (Status sizes = CheckSizes(options); !sizes) return Fail(sizes.error());
  Result<std::vector<Request>> requests = LoadRequests(options);
  if (!requests) return Fail(requests.error());
  const Result<PoolMemory> memory = ChoosePoolMemory(options.backend, options.devices);
  if (!memory) return Fail(memory.error());
  CatchInterrupts();
  PrivateKvmd kvmd;
  std::string socket = common.socket;
  if (options.private_kvmd) {
    Result<PrivateKvmd> started = PrivateKvmd::Start(KvmdFor(options));
    if (!started) return Fail(started.error());
    kvmd = std::move(*started);
    socket = kvmd.socket();
  } else {
    const std::vector<std::string> sockets = Sockets(common, options);
    const std::uint64_t workers = (options.workers + sockets.size() - 1) / sockets.size();
    for (const std::string& node : sockets) {
      if (Status room = CheckRoomOn(node, common.timeout(), workers * options.pool_blocks); !room) return Fail(room.error());
    }
  }
  Result<ReplayReport> report = Replay(options, *memory, socket, *requests);
  const Status stopped = options.private_kvmd ? kvmd.Stop() : NothingLeft(common, options);
  if (!report) {
    if (!options.private_kvmd && !stopped && stopped.error().code == Errc::kSystem) Fail(stopped.error());
    return Fail(report.error());
  }
  PrintReplay(options, *memory, *report, common.json);
  if (!stopped) return Fail(stopped.error());
  if (report->Healthy()) return kHealthy;
  std::cerr << "kvctl: " << report->mismatched_blocks << " blocks did not hold what their key says, " << report->flush_failures
            << " publishes were not confirmed\n";
  return kUnhealthy;
}

}  // namespace kvm::ctl
