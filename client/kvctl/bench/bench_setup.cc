#include "client/kvctl/bench/bench_setup.h"

#include <unistd.h>

#include <random>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/process/interrupt.h"
#include "client/kvctl/process/node_guard.h"
#include "client/kvctl/workload/worker_client.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

// One for all that this process measures. Below 2^32, so that it reads well as a revision.
std::uint64_t RunNumber() {
  static const std::uint64_t run = Mix(static_cast<std::uint64_t>(::getpid()), std::random_device{}()) >> 32;
  return run;
}

std::string NameMark() { return "-run" + std::to_string(RunNumber()); }

}  // namespace

Result<BenchSetup> BenchSetup::Start(const CommonOptions& common, const BenchOptions& options, std::uint64_t max_entries,
                                     std::vector<std::string> arguments) {
  CatchInterrupts();
  BenchSetup setup;
  setup.run_ = RunNumber();
  setup.verify_one_in_ = options.verify_one_in;
  if (options.on_this_node) {
    setup.socket_ = common.socket;
    setup.offloader_ = false;
    Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
    if (!observer) return observer.error();
    if (Status room = CheckRoom(*observer, max_entries); !room)
      return MakeError(room.error().code, room.error().message + "; measure less, or without --on-this-node");
    return setup;
  }
  PrivateKvmdOptions kvmd_options;
  kvmd_options.program = options.kvmd_program;
  kvmd_options.max_entries = max_entries;
  kvmd_options.arguments = std::move(arguments);
  Result<PrivateKvmd> kvmd = PrivateKvmd::Start(kvmd_options);
  if (!kvmd) return kvmd.error();
  setup.kvmd_ = std::move(*kvmd);
  setup.socket_ = setup.kvmd_.socket();
  return setup;
}

PeerConfig BenchSetup::Config(PeerRole role, std::string_view name) const {
  PeerConfig config;
  config.role = role;
  config.socket.Set(socket_);
  config.name.Set(std::string(name) + NameMark());
  config.run = run_;
  config.offload = offloader_;
  config.verify_one_in = verify_one_in_;
  return config;
}

Result<std::shared_ptr<Client>> BenchSetup::Connect(std::string_view name, std::vector<DeviceUuid> devices) {
  WorkerClientOptions options;
  options.socket = socket_;
  options.name = std::string(name) + NameMark();
  options.model = BenchModel(run_);
  options.devices = std::move(devices);
  options.verify_one_in = verify_one_in_;
  Result<WorkerClient> worker = ConnectWorker(options);
  if (!worker) return worker.error();
  model_ = std::move(worker->model);
  return std::move(worker->client);
}

Result<std::shared_ptr<Region>> BenchSetup::Allocate(Client& client, std::string_view name, Geometry geometry, const DeviceUuid& device,
                                                     std::uint16_t kv_group) {
  return AllocatePool(client, model_, {std::string(name) + NameMark(), std::move(geometry), device, kv_group, offloader_});
}

Status AllFound(const Client& client, const Match& match, std::size_t wanted) {
  if (match.size() == wanted) return {};
  std::string why(MatchEndName(match.end()));
  const std::vector<UnmappedRegion> unmapped = client.UnmappedRegions();
  if (match.end() == MatchEnd::kUnmapped && !unmapped.empty()) why += ": " + unmapped.front().reason.ToString();
  const bool gone = match.end() == MatchEnd::kStale || match.end() == MatchEnd::kUnmapped;
  return MakeError(gone ? Errc::kStale : Errc::kSystem,
                   "import: found " + std::to_string(match.size()) + " of " + std::to_string(wanted) + " blocks, then " + why);
}

Status AllImported(const ImportResult& result) {
  if (result.failed.empty()) return {};
  const ImportFailure reason = result.failed.front().reason;
  const bool gone = reason == ImportFailure::kStale || reason == ImportFailure::kUnmapped;
  return MakeError(gone ? Errc::kStale : Errc::kSystem, "import: " + std::to_string(result.failed.size()) + " of " +
                                                            std::to_string(result.valid + result.failed.size()) +
                                                            " blocks failed, the first: " + std::string(ImportFailureName(reason)));
}

int FinishBench(const CommonOptions& common, const BenchOptions& options, const Result<BenchReport>& report) {
  Status left;
  if (options.on_this_node) left = CheckNothingLeft(common.socket, common.timeout(), {NameMark(), BenchModel(RunNumber()).revision});
  // Where the benchmark failed since there is no kvmd, once is enough.
  if (!left && (report || left.error().code == Errc::kSystem)) Fail(left.error());
  if (!report) return Fail(report.error());
  if (!left) return kUnhealthy;
  report->Print(common.json);
  return kHealthy;
}

Status GoOn() {
  if (Interrupted()) return MakeError(Errc::kCancelled, "interrupted");
  return {};
}

}  // namespace kvm::ctl
