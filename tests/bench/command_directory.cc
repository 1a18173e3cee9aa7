// The directory of keys of many nodes: what a lookup takes, how much memory their summaries take,
// and how many bytes a second of changes is.
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/samples.h"
#include "client/mesh/directory/node_summary.h"
#include "client/mesh/directory/peer_summary.h"
#include "tests/bench/commands.h"

namespace kvm::bench {
namespace {

using mesh::CuckooFilter;
using mesh::KeySet;
using mesh::NodeSummary;
using mesh::PeerSummary;
using mesh::SummaryImage;
using std::chrono::steady_clock;

struct DirectoryOptions {
  std::uint32_t nodes = 100, keys = 1'000'000, prefix = 512, having = 4, rounds = 2000, changes = 30'000;
};

// A summary of `count` random keys and of these.
PeerSummary SummaryOf(std::uint32_t count, std::span<const BlockKey> keys, std::mt19937_64& random) {
  CuckooFilter filter(CuckooFilter::BucketsFor(count + keys.size()));
  std::vector<std::uint32_t> changed;
  const auto add = [&](const BlockKey& key) {
    changed.clear();
    static_cast<void>(filter.Add(key, changed));
  };
  for (std::uint32_t i = 0; i < count; ++i) add({random(), random()});
  for (const BlockKey& key : keys) add(key);
  SummaryImage image{1, 1, true, filter.buckets().size(), count + keys.size(), {}};
  image.payload.assign(reinterpret_cast<const char*>(filter.buckets().data()), filter.buckets().size_bytes());
  PeerSummary out;
  static_cast<void>(out.Apply(image));
  return out;
}

int RunDirectory(const DirectoryOptions& options) {
  std::mt19937_64 random(1);
  // Prompts that nodes have, `having` nodes each up to some depth, and prompts that none has.
  constexpr std::size_t kPrompts = 64;
  std::vector<std::vector<BlockKey>> had(kPrompts), absent(kPrompts);
  std::vector<std::vector<BlockKey>> of_node(options.nodes);
  for (std::size_t i = 0; i < kPrompts; ++i) {
    for (std::uint32_t block = 0; block < options.prefix; ++block) had[i].push_back({random(), random()});
    for (std::uint32_t block = 0; block < options.prefix; ++block) absent[i].push_back({random(), random()});
    for (std::uint32_t node = 0; node < std::min(options.having, options.nodes); ++node) {
      std::vector<BlockKey>& keys = of_node[random() % options.nodes];
      keys.insert(keys.end(), had[i].begin(), had[i].begin() + static_cast<std::ptrdiff_t>(random() % (options.prefix + 1)));
    }
  }
  std::vector<PeerSummary> peers;
  peers.reserve(options.nodes);
  std::uint64_t bytes = 0;
  for (std::uint32_t node = 0; node < options.nodes; ++node) {
    peers.push_back(SummaryOf(options.keys, of_node[node], random));
    bytes += CuckooFilter::BucketsFor(options.keys + of_node[node].size()) * sizeof(std::uint64_t);
  }
  std::printf("%u nodes of %u keys: %.1f MB of summaries\n", options.nodes, options.keys, static_cast<double>(bytes) / 1e6);
  const PeerSummary no_disk;
  std::size_t depths = 0;
  const auto measure = [&](const char* what, const std::vector<std::vector<BlockKey>>& prompts) {
    ctl::Samples us;
    for (std::uint32_t round = 0; round < options.rounds; ++round) {
      const std::vector<BlockKey>& keys = prompts[random() % prompts.size()];
      const auto begin = steady_clock::now();
      for (const PeerSummary& peer : peers) depths += mesh::MatchBoth(peer, no_disk, keys, 0).all;
      us.Add(std::chrono::duration<double, std::micro>(steady_clock::now() - begin).count());
    }
    std::printf("lookup of %u keys, %s: p50 %.1f us, p90 %.1f us, p99 %.1f us\n", options.prefix, what, us.p50(), us.Percentile(0.9),
                us.p99());
  };
  measure("some nodes have some of them", had);
  measure("no node has them", absent);
  if (depths == 0) return ctl::kUsage;

  // What a peer is sent in a second.
  NodeSummary node;
  KeySet keys;
  std::vector<BlockKey> order;
  for (std::uint32_t i = 0; i < options.keys; ++i) order.push_back({random(), random()});
  keys.insert(order.begin(), order.end());
  node.Update(std::move(keys));
  const SummaryImage before = node.Answer(0, 0);
  std::vector<mesh::KeyChange> changes;
  for (std::uint32_t i = 0; i < options.changes; ++i) changes.push_back({i % 2 == 0 ? order[i] : BlockKey{random(), random()}, i % 2 != 0});
  const auto begin = steady_clock::now();
  node.Change(changes);
  const SummaryImage delta = node.Answer(before.epoch, before.sequence);
  const std::chrono::duration<double, std::milli> took = steady_clock::now() - begin;
  std::printf("snapshot of a node %.2f MB; %u changes: %s of %.2f MB, made in %.1f ms\n", static_cast<double>(before.payload.size()) / 1e6,
              options.changes, delta.snapshot ? "a snapshot" : "a delta", static_cast<double>(delta.payload.size()) / 1e6, took.count());
  return ctl::kHealthy;
}

}  // namespace

void AddDirectoryCommand(CLI::App& app, ctl::Action& action) {
  const auto options = std::make_shared<DirectoryOptions>();
  CLI::App* const command = app.add_subcommand("directory", "Lookups in the summaries of many nodes, in this process");
  command->add_option("--nodes", options->nodes)->check(CLI::Range(1u, 10'000u))->capture_default_str();
  command->add_option("--keys", options->keys, "Of a node")->check(CLI::Range(1u, 1u << 25))->capture_default_str();
  command->add_option("--prefix", options->prefix, "Keys of a lookup")->check(CLI::Range(1u, 8192u))->capture_default_str();
  command->add_option("--having", options->having, "Nodes that have some of a prompt")->capture_default_str();
  command->add_option("--rounds", options->rounds, "Lookups")->capture_default_str();
  command->add_option("--changes", options->changes, "Of one node")->check(CLI::Range(1u, 1u << 20))->capture_default_str();
  command->callback([options, &action] { action = [options] { return RunDirectory(*options); }; });
}

}  // namespace kvm::bench
