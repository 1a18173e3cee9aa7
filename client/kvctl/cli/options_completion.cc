// Command line of kvctl completion.
#include <CLI/CLI.hpp>

#include <iostream>
#include <memory>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/completion.h"
#include "client/kvctl/cli/exit_codes.h"

namespace kvm::ctl {

void AddCompletionCommand(CLI::App& app, Action& action) {
  auto shell = std::make_shared<Shell>(Shell::kBash);
  CLI::App* command = app.add_subcommand("completion", "Prints a shell's completion script for kvctl; needs no kvmd");
  command->add_option("shell", *shell, "bash, zsh or fish")->required()->transform(CLI::CheckedTransformer(ShellNames()));
  command->footer("bash: source <(kvctl completion bash). The packages have the scripts installed.");
  command->callback([&app, &action, shell] {
    action = [&app, shell] {
      std::cout << CompletionScript(app, *shell);
      return static_cast<int>(kHealthy);
    };
  });
}

}  // namespace kvm::ctl
