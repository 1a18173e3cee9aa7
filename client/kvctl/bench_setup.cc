#include "client/kvctl/bench_setup.h"

#include <unistd.h>

#include <random>

#include "client/kvctl/interrupt.h"
#include "client/kvctl/observer.h"
#include "client/kvctl/random.h"

namespace kvm::ctl {
namespace {

constexpr std::chrono::milliseconds kTimeout{30'000};

}  // namespace

Result<BenchSetup> BenchSetup::Start(const CommonOptions& common, const BenchOptions& options, std::uint64_t max_entries,
                                     std::vector<std::string> arguments) {
  CatchInterrupts();
  BenchSetup setup;
  // Below 2^32, so that it reads well as a revision.
  setup.run_ = Mix(static_cast<std::uint64_t>(::getpid()), std::random_device{}()) >> 32;
  setup.socket_ = common.socket;
  if (common.socket_given) {
    if (Result<Observer> observer = Observer::Connect(common.socket, common.timeout()); !observer) return observer.error();
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
  config.name.Set(std::string(name) + "-" + std::to_string(run_));
  config.run = run_;
  return config;
}

Result<std::shared_ptr<Client>> BenchSetup::Connect(std::string_view name, std::vector<DeviceUuid> devices) {
  ClientOptions options;
  options.socket_path = socket_;
  options.name = std::string(name) + "-" + std::to_string(run_);
  options.timeout = kTimeout;
  options.devices = std::move(devices);
  Result<std::shared_ptr<Client>> client = Client::Connect(options);
  if (!client) return client.error();
  Result<Model> model = (*client)->DeclareModel(BenchModel(run_), After(kTimeout));
  if (!model) return model.error();
  model_ = std::move(*model);
  return client;
}

Result<std::shared_ptr<Region>> BenchSetup::Allocate(Client& client, std::string_view name, Geometry geometry, const DeviceUuid& device,
                                                     std::uint16_t kv_group) {
  RegionOptions options;
  options.name = std::string(name) + "-" + std::to_string(run_);
  options.geometry = std::move(geometry);
  options.device = device;
  options.shard.kv_group = kv_group;
  return client.AllocateRegion(model_, options, After(kTimeout));
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

Status GoOn() {
  if (Interrupted()) return MakeError(Errc::kCancelled, "interrupted");
  return {};
}

}  // namespace kvm::ctl
