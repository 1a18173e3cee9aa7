// Command line of replay.
#include <CLI/CLI.hpp>

#include <map>
#include <memory>
#include <string>

#include "client/kvctl/option_choice.h"
#include "client/kvctl/replay.h"
#include "kvm/geometry.h"

namespace kvm::ctl {
namespace {

constexpr const char* kHelp =
    "Serves a request trace with separate worker processes that share their blocks through kvmd; every imported block's bytes are "
    "compared with what its key says.";

constexpr const char* kFooter =
    "Workloads (from --seed, the same on every machine):\n"
    "  chat    64 conversations at a time, 2-12 turns; each prompt is the whole conversation so far;\n"
    "          4 system prompts shared by all\n"
    "  rag     one of 6 templates, up to 3 of 400 documents by popularity (Zipf), a question nobody asked\n"
    "  agents  32 tasks at a time, 3-15 steps; 5 tool prompts of 6,000-16,000 tokens, a growing scratchpad\n"
    "Pools lie on the GPUs where this machine has any (--backend auto), else in host memory.\n"
    "Routing: round-robin; sticky (by the first two full blocks, so that conversations stay); random.\n"
    "A trace has one JSON object a line: {\"timestamp\": ms, \"input_length\": tokens, \"output_length\": tokens,\n"
    "\"hash_ids\": [block ids]}.\n"
    "Time to first token is modelled: measured key derivation, find and import, plus --prefill-us-per-token\n"
    "for each token that was not found.";

const std::map<std::string, Routing> kRoutings{
    {"round-robin", Routing::kRoundRobin}, {"sticky", Routing::kSticky}, {"random", Routing::kRandom}};

}  // namespace

void AddReplayCommand(CLI::App& app, const CommonOptions& common, Action& action) {
  auto options = std::make_shared<ReplayOptions>();
  CLI::App* command = app.add_subcommand("replay", kHelp);
  command->footer(kFooter);
  CLI::Option* trace = command->add_option("--trace", options->trace, "Trace file, JSON lines");
  command->add_option("--workload", options->workload, "Generated requests instead: chat, rag or agents")
      ->check(CLI::IsMember({"chat", "rag", "agents"}))
      ->excludes(trace);
  command->add_option("--seed", options->seed, "Seed of the workload and of random routing")->capture_default_str();
  command->add_option("--requests", options->requests, "Requests of a generated workload")
      ->capture_default_str()
      ->check(CLI::Range(std::size_t{1}, std::size_t{10'000'000}));
  command->add_option("--limit-requests", options->limit_requests, "Stop after this many requests, 0 for all")->capture_default_str();
  command->add_option("--workers", options->workers, "Worker processes")->capture_default_str()->check(CLI::Range(1u, 256u));
  command->add_option("--pool-blocks", options->pool_blocks, "Blocks of each worker's pool")
      ->capture_default_str()
      ->check(CLI::Range(1u, Geometry::kMaxBlocks));
  command->add_option("--block-bytes", options->block_bytes, "Size of a block, a multiple of 8")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{8}, std::uint64_t{1} << 30));
  command->add_option("--block-tokens", options->block_tokens, "Tokens a block")->capture_default_str()->check(CLI::Range(1u, 1u << 20));
  AddChoice(*command, "--routing", options->routing, kRoutings, "Which worker gets a request", "round-robin");
  AddBackendOptions(*command, options->backend, options->devices,
                    "GPUs that worker 0, 1, … take in turn: ordinals or UUIDs, separated by commas; default: all");
  command->add_flag("--in-order", options->in_order, "One request at a time, each sees all that was published before");
  command->add_flag("--publish-imported,!--no-publish-imported", options->publish_imported,
                    "Publish imported blocks too, as further replicas (default)");
  command->add_option("--prefill-us-per-token", options->prefill_us_per_token, "Of the modelled prefill")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
  command->add_flag("--private", options->private_kvmd, "Run on a kvmd of its own, stopped at the end");
  command->add_option("--kvmd", options->kvmd_program, "The kvmd that --private starts; default: next to kvctl, else from PATH");
  command->add_option("--model-id", options->model_id, "Share blocks with other runs of this model id; default: with none");
  command->callback([&common, &action, options] { action = [&common, options] { return RunReplay(common, *options); }; });
}

}  // namespace kvm::ctl
