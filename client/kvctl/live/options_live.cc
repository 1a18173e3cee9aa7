// Command line of kvctl top and kvctl stat.
#include <CLI/CLI.hpp>

#include <memory>

#include "client/kvctl/live/live.h"

namespace kvm::ctl {

void AddLiveCommands(CLI::App& app, const CommonOptions& common, Action& action) {
  const auto add = [&](const char* name, const char* help, int (*run)(const CommonOptions&, const LiveOptions&)) {
    auto options = std::make_shared<LiveOptions>();
    CLI::App* command = app.add_subcommand(name, help);
    command->add_option("--interval", options->interval_s, "Seconds between two of them")
        ->capture_default_str()
        ->check(CLI::Range(0.1, 3600.0));
    command->add_option("--count", options->count, "How many, 0: until it is interrupted")->capture_default_str();
    command->callback([&common, &action, options, run] { action = [&common, options, run] { return run(common, *options); }; });
    return command;
  };
  add("top", "What workers look up, find and import, as a page that is drawn anew", &RunTop)
      ->footer(
          "Root and kvmd's user see all domains, other users their own. Where the output is no terminal, pages follow each other; --json: "
          "as kvctl stat.");
  add("stat", "What workers look up, find and import, a line for each interval", &RunStat)
      ->footer("With --json, each line is a JSON object.");
}

}  // namespace kvm::ctl
