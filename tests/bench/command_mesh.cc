#include <CLI/CLI.hpp>

#include <chrono>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "client/kvctl/cli/samples.h"
#include "kvclient/kvclient.h"
#include "tests/bench/commands.h"
#include "tests/support/data/model_specs.h"

namespace kvm::bench {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeout{60};

struct MeshOptions {
  std::string source_socket, mesh_socket, peer = "a";
  std::uint64_t block_bytes = std::uint64_t{2} << 20;
  std::uint32_t blocks = 64, rounds = 5;
};

struct Node {
  std::shared_ptr<Client> client;
  Model model;
  std::shared_ptr<Region> region;
};

Result<Node> Open(const std::string& socket, const MeshOptions& options) {
  ClientOptions connection;
  connection.socket_path = socket;
  connection.name = "kvm_bench";
  Result<std::shared_ptr<Client>> client = Client::Connect(connection);
  if (!client) return client.error();
  Node out{*client, {}, nullptr};
  Result<Model> model = out.client->DeclareModel(test::LlamaSpec(), After(kTimeout));
  if (!model) return model.error();
  out.model = *model;
  RegionOptions region;
  region.name = "kvm_bench";
  region.geometry = Geometry::Contiguous(options.blocks, options.block_bytes);
  region.offload = OffloadMode::kNever;
  region.outlives_owner = false;
  Result<std::shared_ptr<Region>> allocated = out.client->AllocateRegion(out.model, region, After(kTimeout));
  if (!allocated) return allocated.error();
  out.region = *allocated;
  return out;
}

// A prompt that was never there before, in all blocks of the region.
Result<std::vector<BlockKey>> PublishAnother(Node& source, std::mt19937_64& random, std::uint32_t blocks) {
  std::vector<BlockKey> keys;
  std::vector<PublishRequest> requests;
  BlockKey parent{};
  for (std::uint32_t block = 0; block < blocks; ++block) {
    const BlockKey key{random(), random()};
    const BlockWrite write = source.region->BeginWrite(block);
    std::memcpy(source.region->BlockData(block), &key, sizeof(key));
    requests.push_back({key, parent, block, write});
    keys.push_back(key);
    parent = key;
  }
  static_cast<void>(source.region->Publish(requests));
  if (Status flushed = source.region->Flush(After(kTimeout)); !flushed) return flushed.error();
  return keys;
}

// Seconds that one join took which brought all blocks; 0: the source's node was not ready yet.
Result<double> TimeJoin(Node& joiner, const std::vector<BlockKey>& keys, const MeshOptions& options) {
  JoinOptions join;
  join.deadline = After(kTimeout);
  join.source_hint = options.peer;
  join.mesh_socket = options.mesh_socket;
  const auto begin = steady_clock::now();
  const JoinOutcome outcome = joiner.client->JoinCache(*joiner.region, keys, join);
  const std::chrono::duration<double> took = steady_clock::now() - begin;
  if (outcome.fetched == keys.size() && outcome.blocks == keys.size()) return took.count();
  if (outcome.fetched == 0 && outcome.reason.find("not there") != std::string::npos) return 0.0;
  return MakeError(Errc::kUnavailable, "the join brought " + std::to_string(outcome.fetched) + " blocks: " + outcome.reason);
}

Status Measure(const std::string& socket, const MeshOptions& options, ctl::Samples& seconds) {
  Result<Node> source = Open(options.source_socket, options), joiner = Open(socket, options);
  if (!source || !joiner) return source ? joiner.error() : source.error();
  std::mt19937_64 random(std::random_device{}());
  for (std::uint32_t i = 0; i < options.blocks; ++i) {
    auto* const words = reinterpret_cast<std::uint64_t*>(source->region->BlockData(i));
    for (std::uint64_t word = 0; word < options.block_bytes / sizeof(*words); ++word) words[word] = random();
  }
  // The first join makes the pools and the connections, and touches its pages for the first time.
  for (std::uint32_t round = 0; round <= options.rounds; ++round) {
    const Result<std::vector<BlockKey>> keys = PublishAnother(*source, random, options.blocks);
    if (!keys) return keys.error();
    Result<double> took = TimeJoin(*joiner, *keys, options);
    const auto until = steady_clock::now() + kTimeout;
    while (took && *took == 0 && steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      took = TimeJoin(*joiner, *keys, options);
    }
    if (!took) return took.error();
    if (*took == 0) return MakeError(Errc::kUnavailable, "the source does not have what was published on its node");
    if (round > 0) seconds.Add(*took);
  }
  return {};
}

int Run(const ctl::CommonOptions& common, const MeshOptions& options) {
  ctl::Samples seconds;
  if (Status measured = Measure(common.socket, options, seconds); !measured) return ctl::Fail(measured.error());
  const double gigabytes = static_cast<double>(options.blocks * options.block_bytes) / 1e9;
  std::cout << options.blocks << " blocks of " << options.block_bytes << " bytes, " << seconds.count() << " joins: median "
            << gigabytes / seconds.p50() << " GB/s, slowest " << gigabytes / seconds.Percentile(1) << ", fastest "
            << gigabytes / seconds.Percentile(0) << '\n';
  return 0;
}

}  // namespace

void AddMeshCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action) {
  const auto options = std::make_shared<MeshOptions>();
  CLI::App* const mesh = app.add_subcommand("mesh", "Joins of whole prompts that another node has (scripts/mesh_bench.sh)");
  mesh->add_option("--source-socket", options->source_socket, "kvmd's socket of the node that has the blocks")->required();
  mesh->add_option("--mesh-socket", options->mesh_socket, "kvmd-mesh's socket of the node that joins")->required();
  mesh->add_option("--peer", options->peer, "The source's name")->capture_default_str();
  mesh->add_option("--block-bytes", options->block_bytes)->transform(CLI::AsSizeValue(false));
  mesh->add_option("--blocks", options->blocks, "Of one join")->check(CLI::Range(1u, 8192u))->capture_default_str();
  mesh->add_option("--rounds", options->rounds, "Joins")->check(CLI::Range(1u, 100'000u))->capture_default_str();
  mesh->callback([&common, &action, options] { action = [&common, options] { return Run(common, *options); }; });
}

}  // namespace kvm::bench
