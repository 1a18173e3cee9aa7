// Command line of simulate.
#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "client/kvctl/simulate/simulate.h"

namespace kvm::ctl {
namespace {

constexpr const char* kSimulateHelp =
    "Prints how much of a request trace a cache of KV cache blocks would hit, by eviction policy and capacity, next to "
    "the most that any policy could. Needs no kvmd. Requests come one after the other; timestamps are not used.";

constexpr const char* kSimulateFooter =
    "Policies:\n"
    "  lru          evicts the block that was used longest ago; later blocks of a request first\n"
    "  s3-fifo      a small queue for new blocks, a main queue for blocks that are used again\n"
    "  hit-density  the end of a prefix that promises least hits for its place and time, learnt from the\n"
    "               trace; falls back to LRU's order where LRU does better\n"
    "  min          the lowest upper bound of all policies: Belady's MIN, which knows all requests to come, evicts the\n"
    "               block whose next use is farthest, and need not admit a block\n"
    "A hit is a leading block of a request that is in the cache, up to the first that is not. Gap closed: the part of\n"
    "the distance from lru to min that hit-density covers.";

}  // namespace

void AddSimulateCommand(CLI::App& app, const CommonOptions& common, Action& action) {
  auto options = std::make_shared<SimulateOptions>();
  CLI::App* command = app.add_subcommand("simulate", kSimulateHelp);
  command->footer(std::string(kRequestSourceHelp) + kSimulateFooter);
  AddRequestOptions(*command, *options);
  std::vector<std::string> names = SimulatedPolicies();
  names.emplace_back("all");
  command->add_option("--policy", options->policies, "Policies, separated by commas")
      ->delimiter(',')
      ->check(CLI::IsMember(names))
      ->default_str("all");
  command
      ->add_option("--capacity-blocks", options->capacities,
                   "Capacities, separated by commas; default: 1, 2, 5, 10, 20 % of the different blocks")
      ->delimiter(',')
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40));
  command->callback([&common, &action, options] { action = [&common, options] { return RunSimulate(common, *options); }; });
}

}  // namespace kvm::ctl
