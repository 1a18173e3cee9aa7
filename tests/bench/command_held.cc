// What a kvmd-mesh costs beside a node that holds many blocks: its processor time while nothing
// changes, and while some blocks are replaced each second.
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "client/kvctl/cli/exit_codes.h"
#include "kvclient/kvclient.h"
#include "tests/bench/commands.h"
#include "tests/support/data/model_specs.h"

namespace kvm::bench {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeout{60};
constexpr std::uint32_t kPrefix = 256;  // blocks of a prefix
constexpr std::uint64_t kBlockBytes = 64;

struct HeldOptions {
  std::string mesh_socket;
  int pid = 0;
  std::uint32_t blocks = 100'000, change = 1000, seconds = 20;
};

// Seconds of a core that the process has had; negative: there is none.
double ProcessSeconds(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return -1;
  std::istringstream fields(line.substr(line.rfind(')') + 2));
  std::string field;
  double ticks = 0;
  for (int i = 0; i <= 12 && fields >> field; ++i)
    if (i >= 11) ticks += std::stod(field);
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

class Holder {
 public:
  Holder(std::shared_ptr<Client> client, std::shared_ptr<Region> region, const HeldOptions& options)
      : client_(std::move(client)), region_(std::move(region)), options_(options) {}

  // New prefixes in these blocks, in whole prefixes.
  Status Publish(std::uint32_t first, std::uint32_t count) {
    std::vector<PublishRequest> requests;
    std::vector<BlockKey> keys;
    BlockKey parent{};
    for (std::uint32_t block = first; block < first + count; ++block) {
      const std::uint32_t depth = (block - first) % kPrefix;
      const BlockKey key{random_(), random_()};
      requests.push_back({key, depth == 0 ? BlockKey{} : parent, depth, region_->BeginWrite(block)});
      keys.push_back(key);
      parent = key;
    }
    if (Status described = Describe(keys); !described) return described;
    static_cast<void>(region_->Publish(requests));
    return region_->Flush(After(kTimeout));
  }

 private:
  Status Describe(std::span<const BlockKey> keys) {
    const ModelSpec spec = test::LlamaSpec();
    DescribeOptions how;
    how.mesh_socket = options_.mesh_socket;
    how.deadline = After(kTimeout);
    while (!keys.empty()) {
      const std::span<const BlockKey> now = keys.first(std::min<std::size_t>(keys.size(), 4096));
      const std::vector<std::uint32_t> tokens(now.size() * spec.block_tokens, 7);
      Result<DescribeOutcome> described = client_->DescribeBlocks(spec, now, tokens, how);
      if (!described) return described.error();
      if (!described->wanted) return {};
      keys = keys.subspan(described->taken);
      if (described->taken < now.size()) std::this_thread::sleep_for(milliseconds(20));
    }
    return {};
  }

  std::shared_ptr<Client> client_;
  std::shared_ptr<Region> region_;
  const HeldOptions& options_;
  std::mt19937_64 random_{std::random_device{}()};
};

// Until the process has rested for two seconds. False: it did not in three minutes.
bool WaitForRest(int pid) {
  const auto until = steady_clock::now() + std::chrono::minutes(3);
  for (int quiet = 0; steady_clock::now() < until;) {
    const double before = ProcessSeconds(pid);
    std::this_thread::sleep_for(milliseconds(1000));
    quiet = ProcessSeconds(pid) - before <= 0.1 ? quiet + 1 : 0;
    if (quiet == 2) return true;
  }
  return false;
}

Status Measure(const std::string& socket, const HeldOptions& options) {
  ClientOptions connection;
  connection.socket_path = socket;
  connection.name = "kvm_bench";
  Result<std::shared_ptr<Client>> client = Client::Connect(connection);
  if (!client) return client.error();
  Result<Model> model = (*client)->DeclareModel(test::LlamaSpec(), After(kTimeout));
  if (!model) return model.error();
  RegionOptions region;
  region.name = "kvm_bench";
  region.geometry = Geometry::Contiguous(options.blocks, kBlockBytes);
  region.offload = OffloadMode::kNever;
  region.outlives_owner = false;
  Result<std::shared_ptr<Region>> allocated = (*client)->AllocateRegion(*model, region, After(kTimeout));
  if (!allocated) return allocated.error();
  Holder holder(*client, *allocated, options);
  const double start = ProcessSeconds(options.pid);
  for (std::uint32_t first = 0; first < options.blocks; first += 64 * kPrefix)
    if (Status published = holder.Publish(first, std::min(64 * kPrefix, options.blocks - first)); !published) return published;
  if (!WaitForRest(options.pid)) return MakeError(Errc::kDeadlineExceeded, "the process does not come to rest");
  std::printf("%u blocks held: %.2f s of a core until it knew them\n", options.blocks, ProcessSeconds(options.pid) - start);

  const auto spend = [&](const char* what, const auto& each_second) -> Status {
    const double before = ProcessSeconds(options.pid);
    const auto begin = steady_clock::now();
    for (std::uint32_t second = 1; second <= options.seconds; ++second) {
      if (Status done = each_second(); !done) return done;
      std::this_thread::sleep_until(begin + std::chrono::seconds(second));
    }
    const std::chrono::duration<double> took = steady_clock::now() - begin;
    std::printf("%s: %.2f %% of a core\n", what, 100 * (ProcessSeconds(options.pid) - before) / took.count());
    return {};
  };
  if (Status idle = spend("nothing changes", [] { return Status(); }); !idle) return idle;
  std::uint32_t next = 0;
  const std::uint32_t change = std::max(options.change / kPrefix, 1u) * kPrefix;
  const std::string what = std::to_string(change) + " blocks replaced each second";
  return spend(what.c_str(), [&] {
    const Status published = holder.Publish(next, change);
    next = next + 2 * change <= options.blocks ? next + change : 0;
    return published;
  });
}

}  // namespace

void AddHeldCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action) {
  const auto options = std::make_shared<HeldOptions>();
  CLI::App* const held = app.add_subcommand("held", "Processor time of a kvmd-mesh beside a node that holds many blocks");
  held->add_option("--mesh-socket", options->mesh_socket, "kvmd-mesh's socket")->required();
  held->add_option("--pid", options->pid, "kvmd-mesh")->required();
  held->add_option("--blocks", options->blocks, "Held")->check(CLI::Range(kPrefix, 1u << 26))->capture_default_str();
  held->add_option("--change", options->change, "Blocks that are replaced each second, in prefixes of 256")->capture_default_str();
  held->add_option("--seconds", options->seconds, "With, and without changes")->check(CLI::Range(1u, 3600u))->capture_default_str();
  held->callback([&common, &action, options] {
    action = [&common, options] {
      const Status measured = Measure(common.socket, *options);
      return measured ? ctl::kHealthy : ctl::Fail(measured.error());
    };
  });
}

}  // namespace kvm::bench
