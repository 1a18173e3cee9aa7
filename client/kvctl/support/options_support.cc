// Command line of kvctl config check and kvctl support-bundle.
#include <CLI/CLI.hpp>

#include <memory>

#include "client/kvctl/support/support.h"

namespace kvm::ctl {

void AddSupportCommands(CLI::App& app, const CommonOptions& common, Action& action) {
  CLI::App* config = app.add_subcommand("config", "kvmd's configuration; needs no running kvmd");
  config->require_subcommand(1);
  auto checked = std::make_shared<ConfigCheckOptions>();
  CLI::App* check =
      config->add_subcommand("check", "Names every fault of a configuration file, with its line; exit code 1 if there is one");
  check->add_option("file", checked->file, "The TOML file")->required();
  check->add_option("--kvmd", checked->kvmd, "The kvmd that is to read it; default: beside kvctl, or of PATH");
  check->callback([&common, &action, checked] { action = [&common, checked] { return RunConfigCheck(common, *checked); }; });

  auto bundle = std::make_shared<SupportBundleOptions>();
  CLI::App* command =
      app.add_subcommand("support-bundle", "Writes what a report of a fault needs into one .tar; works without a kvmd, too");
  command->add_option("--output", bundle->output, "File to write; default: kvmd-support-TIME.tar in this directory");
  command->add_option("--config", bundle->config, "The configuration of the node's kvmd")->capture_default_str();
  command->add_option("--kvmd", bundle->kvmd, "kvmd's program; default: beside kvctl, or of PATH");
  command->footer(
      "It has names of models, users, processes and regions, and keys of hot prefixes; no tokens, and no bytes of blocks. Look into it "
      "before you pass it on. Run it as root, to have all domains and kvmd's limits.");
  command->callback([&common, &action, bundle] { action = [&common, bundle] { return RunSupportBundle(common, *bundle); }; });
}

}  // namespace kvm::ctl
