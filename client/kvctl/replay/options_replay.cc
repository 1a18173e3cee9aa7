// Command line of replay.
#include <CLI/CLI.hpp>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/kvctl/replay/replay.h"
#include "client/kvctl/workload/option_choice.h"
#include "kvm/geometry.h"

namespace kvm::ctl {
namespace {

constexpr const char* kReplayHelp =
    "Serves a request trace with separate worker processes that share their blocks through kvmd; every imported block's bytes are "
    "compared with what its key says.";

constexpr const char* kReplayFooter =
    "Pools lie on the GPUs where this machine has any (--backend auto), else in host memory.\n"
    "Policies are those of kvctl simulate; one worker hits what it says for --policy and --capacity-blocks.\n"
    "Without --paced timestamps are not used: requests are served as fast as the workers can, none far ahead of the\n"
    "others, so that hits of requests that are close in time depend on the machine. Computing takes no time in a replay,\n"
    "unless --prefill-takes-time is given.\n"
    "Without --private the blocks lie at the node's kvmd for the time of the run; one that has no room for them is refused.\n"
    "Routing: round-robin; sticky (by the first two full blocks, so that conversations stay); random.\n"
    "Time to first token is modelled: measured key derivation, find and import, plus --prefill-us-per-token\n"
    "for each token that was not found.";

const std::map<std::string, Routing> kRoutings{
    {"round-robin", Routing::kRoundRobin}, {"sticky", Routing::kSticky}, {"random", Routing::kRandom}};

const std::map<std::string, TimestampUnit> kTimestampUnits{{"auto", TimestampUnit::kAuto},
                                                           {"s", TimestampUnit::kSeconds},
                                                           {"ms", TimestampUnit::kMilliseconds},
                                                           {"us", TimestampUnit::kMicroseconds}};

// Names of the policies, made from daemon/policy's own list.
const std::map<std::string, policy::PolicyKind>& Policies() {
  static const std::map<std::string, policy::PolicyKind> policies = [] {
    std::map<std::string, policy::PolicyKind> names;
    for (const policy::PolicyKind kind : policy::kAllPolicies) names.emplace(policy::PolicyName(kind), kind);
    return names;
  }();
  return policies;
}

}  // namespace

void AddReplayCommand(CLI::App& app, const CommonOptions& common, Action& action) {
  auto options = std::make_shared<ReplayOptions>();
  CLI::App* command = app.add_subcommand("replay", kReplayHelp);
  command->footer(std::string(kRequestSourceHelp) + kReplayFooter);
  AddRequestOptions(*command, *options);
  command->add_option("--workers", options->workers, "Worker processes")->capture_default_str()->check(CLI::Range(1u, 256u));
  command->add_option("--pool-blocks", options->pool_blocks, "Blocks of each worker's pool: its capacity")
      ->capture_default_str()
      ->check(CLI::Range(1u, Geometry::kMaxBlocks));
  AddChoice(*command, "--policy", options->policy, Policies(), "Which block of a full pool leaves", "lru");
  command->add_option("--block-bytes", options->block_bytes, "Size of a block, a multiple of 8")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{8}, std::uint64_t{1} << 30));
  AddChoice(*command, "--routing", options->routing, kRoutings, "Which worker gets a request", "round-robin");
  AddBackendOptions(*command, options->backend, options->devices,
                    "GPUs that worker 0, 1, … take in turn: ordinals or UUIDs, separated by commas; default: all");
  command->add_flag("--in-order", options->in_order, "One request at a time, each sees all that was published before");
  CLI::Option* paced = command->add_flag("--paced", options->paced,
                                         "Send a request when its timestamp says, counted from the first one, and its worker is free");
  command->add_option("--speed", options->speed, "With --paced: so many times as fast as the timestamps")
      ->capture_default_str()
      ->check(CLI::Range(1e-3, 1e6))
      ->needs(paced);
  AddChoice(*command, "--timestamp-unit", options->timestamp_unit, kTimestampUnits,
            "With --paced: what the trace's timestamps count; auto: seconds if one of them has a fraction, else ms", "auto");
  command->add_flag("--publish-imported,!--no-publish-imported", options->publish_imported,
                    "Publish imported blocks too, as further replicas (default)");
  command->add_option("--prefill-us-per-token", options->prefill_us_per_token, "Of the modelled prefill")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e6));
  command->add_flag("--prefill-takes-time", options->prefill_takes_time,
                    "A worker is busy for the modelled prefill before it publishes, so that equal prompts can meet in time");
  command
      ->add_option("--wait-computing-ms", options->wait_computing_ms,
                   "Workers mark what they compute, and wait so long for blocks that another one computes; 0: neither")
      ->capture_default_str()
      ->check(CLI::Range(0u, 600'000u));
  CLI::Option* nodes =
      command
          ->add_option_function<std::vector<std::string>>(
              "--node",
              [options](const std::vector<std::string>& given) {
                for (const std::string& each : given) {
                  const std::size_t comma = each.find(',');
                  options->nodes.push_back({each.substr(0, comma), comma == std::string::npos ? "" : each.substr(comma + 1)});
                }
              },
              "A node: the socket of its kvmd, and after a comma that of its kvmd-mesh, which workers ask for blocks that their node "
              "does not have; given for each node, whose workers take turns")
          ->type_name("SOCKET[,SOCKET]");
  command->add_option("--join-ms", options->join_ms, "With --node: how long a worker waits for blocks of other nodes")
      ->capture_default_str()
      ->check(CLI::Range(1u, 600'000u))
      ->needs(nodes);
  command->add_flag("--private", options->private_kvmd, "Run on a kvmd of its own, stopped at the end")->excludes(nodes);
  command->add_option("--kvmd", options->kvmd_program, "The kvmd that --private starts; default: next to kvctl, else from PATH");
  command->add_option("--host-cache", options->host_cache_bytes, "Host memory in which that one keeps blocks (64G); 0: none")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("0")
      ->type_name("SIZE");
  AddChoice(*command, "--host-cache-policy", options->host_cache_policy, Policies(), "Which block of a full host cache leaves",
            "hit-density");
  command->add_option("--model-id", options->model_id, "Share blocks with other runs of this model id; default: with none");
  command->callback([&common, &action, options] {
    if (options->paced) options->timestamps = options->timestamp_unit;
    action = [&common, options] { return RunReplay(common, *options); };
  });
}

}  // namespace kvm::ctl
