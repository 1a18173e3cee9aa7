// What a join takes that brings nothing, and after which time a node's blocks are found by another
// node, while many others change.
#include <CLI/CLI.hpp>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/samples.h"
#include "kvclient/kvclient.h"
#include "tests/bench/commands.h"
#include "tests/support/data/model_specs.h"

namespace kvm::bench {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeout{60};
constexpr std::uint32_t kPrefix = 64;
constexpr std::uint64_t kBlockBytes = 4096, kChangedBytes = 64;
constexpr int kBatchesPerSecond = 10;

struct DelayOptions {
  std::string source_socket, mesh_socket, peer = "a";
  std::uint32_t joins = 2000, published = 20, held = 300'000, changes = 30'000;
};

// Blocks of one KV-cache group have one size.
Result<std::shared_ptr<Region>> Allocate(Client& client, const std::string& name, std::uint16_t kv_group, std::uint32_t blocks,
                                         std::uint64_t block_bytes) {
  Result<Model> model = client.DeclareModel(test::LlamaSpec(), After(kTimeout));
  if (!model) return model.error();
  RegionOptions region;
  region.name = name;
  region.shard.kv_group = kv_group;
  region.geometry = Geometry::Contiguous(blocks, block_bytes);
  region.offload = OffloadMode::kNever;
  region.outlives_owner = false;
  return client.AllocateRegion(*model, region, After(kTimeout));
}

Result<std::shared_ptr<Client>> Connect(const std::string& socket) {
  ClientOptions connection;
  connection.socket_path = socket;
  connection.name = "kvm_bench";
  return Client::Connect(connection);
}

// A new prompt in these blocks.
Result<std::vector<BlockKey>> Publish(Region& region, std::uint32_t first, std::uint32_t count, std::mt19937_64& random) {
  std::vector<BlockKey> keys;
  std::vector<PublishRequest> requests;
  for (std::uint32_t i = 0; i < count; ++i) {
    const BlockKey key{random(), random()};
    requests.push_back({key, i == 0 ? BlockKey{} : keys.back(), i, region.BeginWrite(first + i)});
    keys.push_back(key);
  }
  static_cast<void>(region.Publish(requests));
  if (Status flushed = region.Flush(After(kTimeout)); !flushed) return flushed.error();
  return keys;
}

Status MeasureNothing(Client& joiner, const Region& region, const DelayOptions& options, std::mt19937_64& random) {
  for (const std::string& hint : {std::string(), options.peer}) {
    ctl::Samples us;
    for (std::uint32_t i = 0; i < options.joins; ++i) {
      std::vector<BlockKey> keys(512);
      for (BlockKey& key : keys) key = {random(), random()};
      JoinOptions join;
      join.deadline = After(kTimeout);
      join.mesh_socket = options.mesh_socket;
      join.source_hint = hint;
      const auto begin = steady_clock::now();
      const JoinOutcome outcome = joiner.JoinCache(region, keys, join);
      us.Add(std::chrono::duration<double, std::micro>(steady_clock::now() - begin).count());
      if (outcome.blocks != 0) return MakeError(Errc::kProtocol, "a join brought blocks that there are not");
    }
    std::printf("join of 512 keys that no node has, %s: p50 %.0f us, p99 %.0f us\n",
                hint.empty() ? "no hint, so that no peer is asked" : "the peer is asked", us.p50(), us.p99());
  }
  return {};
}

// Replaces blocks of a region of its own, until told to stop.
class Changes {
 public:
  Changes(Region& region, const DelayOptions& options) : region_(region), options_(options) {}
  Status Fill() {
    for (std::uint32_t first = 0; first + kPrefix <= options_.held; first += kPrefix)
      if (Result<std::vector<BlockKey>> keys = Publish(region_, first, kPrefix, random_); !keys) return keys.error();
    return {};
  }
  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  // Blocks replaced.
  std::uint64_t Stop() {
    ending_ = true;
    thread_.join();
    return done_;
  }

 private:
  void Run() {
    const auto begin = steady_clock::now();
    std::uint32_t next = 0;
    for (int batch = 1; !ending_; ++batch) {
      // A change takes a key away and brings another one.
      for (std::uint32_t i = 0; i < options_.changes / 2 / kBatchesPerSecond; i += kPrefix) {
        if (!Publish(region_, next, kPrefix, random_)) return;
        next = next + 2 * kPrefix <= options_.held ? next + kPrefix : 0;
        done_ += kPrefix;
      }
      std::this_thread::sleep_until(begin + milliseconds(1000 / kBatchesPerSecond) * batch);
    }
  }
  Region& region_;
  const DelayOptions& options_;
  std::mt19937_64 random_{std::random_device{}()};
  std::uint64_t done_ = 0;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

// Seconds until the joiner's node finds a new prompt without a hint.
Result<double> TimeVisible(Client& joiner, const Region& region, Region& source, const DelayOptions& options, std::mt19937_64& random) {
  const Result<std::vector<BlockKey>> keys = Publish(source, 0, kPrefix, random);
  if (!keys) return keys.error();
  const auto begin = steady_clock::now();
  JoinOptions join;
  join.mesh_socket = options.mesh_socket;
  while (steady_clock::now() - begin < kTimeout) {
    join.deadline = After(kTimeout);
    const JoinOutcome outcome = joiner.JoinCache(region, *keys, join);
    if (outcome.blocks == keys->size()) return std::chrono::duration<double>(steady_clock::now() - begin).count();
    std::this_thread::sleep_for(milliseconds(10));
  }
  return MakeError(Errc::kDeadlineExceeded, "the other node does not find what was published");
}

Status Measure(const std::string& socket, const DelayOptions& options) {
  Result<std::shared_ptr<Client>> source = Connect(options.source_socket), joiner = Connect(socket);
  if (!source || !joiner) return source ? joiner.error() : source.error();
  Result<std::shared_ptr<Region>> served = Allocate(**source, "kvm_bench", 0, kPrefix, kBlockBytes);
  Result<std::shared_ptr<Region>> changing = Allocate(**source, "kvm_bench-changes", 1, options.held, kChangedBytes);
  Result<std::shared_ptr<Region>> local = Allocate(**joiner, "kvm_bench", 0, kPrefix, kBlockBytes);
  for (const auto* region : {&served, &changing, &local})
    if (!*region) return region->error();
  std::mt19937_64 random(std::random_device{}());
  Result<double> ready = TimeVisible(**joiner, **local, **served, options, random);
  if (!ready) return ready.error();
  if (Status nothing = MeasureNothing(**joiner, **local, options, random); !nothing) return nothing;
  Changes changes(**changing, options);
  if (Status filled = changes.Fill(); !filled) return filled;
  for (const bool busy : {false, true}) {
    const auto begin = steady_clock::now();
    if (busy) changes.Start();
    ctl::Samples seconds;
    Status failed;
    for (std::uint32_t i = 0; i < options.published && failed; ++i) {
      const Result<double> took = TimeVisible(**joiner, **local, **served, options, random);
      if (took) seconds.Add(*took);
      if (!took) failed = took.error();
    }
    const double changed = busy ? 2 * static_cast<double>(changes.Stop()) : 0;
    if (!failed) return failed;
    const std::chrono::duration<double> took = steady_clock::now() - begin;
    std::printf("found and fetched by the other node, %u blocks held, %.0f changes/s: p50 %.2f s, slowest %.2f s of %u\n", options.held,
                changed / took.count(), seconds.p50(), seconds.Percentile(1), options.published);
  }
  return {};
}

}  // namespace

void AddMeshDelaysCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action) {
  const auto options = std::make_shared<DelayOptions>();
  CLI::App* const command = app.add_subcommand("mesh-delays", "Joins of nothing, and when blocks of another node are found");
  command->add_option("--source-socket", options->source_socket, "kvmd's socket of the node that has the blocks")->required();
  command->add_option("--mesh-socket", options->mesh_socket, "kvmd-mesh's socket of the node that joins")->required();
  command->add_option("--peer", options->peer, "The source's name")->capture_default_str();
  command->add_option("--joins", options->joins, "Of nothing")->check(CLI::Range(1u, 1'000'000u))->capture_default_str();
  command->add_option("--published", options->published, "Prompts that are to be found")
      ->check(CLI::Range(1u, 10'000u))
      ->capture_default_str();
  command->add_option("--held", options->held, "Blocks of the source that change")
      ->check(CLI::Range(kPrefix, 1u << 26))
      ->capture_default_str();
  command->add_option("--changes", options->changes, "Keys that come or go, each second")->capture_default_str();
  command->callback([&common, &action, options] {
    action = [&common, options] {
      const Status measured = Measure(common.socket, *options);
      return measured ? ctl::kHealthy : ctl::Fail(measured.error());
    };
  });
}

}  // namespace kvm::bench
