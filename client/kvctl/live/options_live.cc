// Command line of kvctl top, kvctl stat and kvctl events.
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
    return std::pair(command, options);
  };
  add("top", "What workers look up, find and import, as a page that is drawn anew", &RunTop)
      .first->footer(
          "Root and kvmd's user see all domains, other users their own. Where the output is no terminal, pages follow each other; --json: "
          "as kvctl stat.");
  add("stat", "What workers look up, find and import, a line for each interval", &RunStat)
      .first->footer("With --json, each line is a JSON object.");
  const auto [events, options] =
      add("events", "When kvmd started, and workers joined; with --follow also what happens from now on", &RunEvents);
  events->add_flag("--follow", options->follow, "Go on, also while kvmd is away");
  events->footer(
      "Seen are workers that join and leave, kvmd's restarts, memory of dead workers, the host cache's size, and a full index, each "
      "between "
      "two looks at kvmd (--interval). kvmd's log has more: journalctl -u kvmd. With --json, each line is a JSON object.");
}

}  // namespace kvm::ctl
