// kvctl: the operator's tool. Parses the command line, runs one command, returns its exit code.
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/internal_roles.h"
#include "kvm/device.h"
#include "kvm/error.h"
#include "proto/base/standard_fds.h"

namespace {

constexpr const char* kFooter =
    "Exit codes: 0 healthy, 1 usage, 2 kvmd unreachable, 3 unhealthy, 130 interrupted.\n"
    "--socket, --json and --timeout-ms may stand before or after the command.";

// "0.2.0 (CUDA 13.0)": whether this binary can use GPUs.
std::string VersionText() {
  const std::string toolkit = kvm::CudaToolkitVersion();
  return std::string(KVM_VERSION) + (toolkit.empty() ? " (without CUDA)" : " (CUDA " + toolkit + ")");
}

int Main(int argc, char** argv) {
  using namespace kvm::ctl;
  if (const std::optional<int> done = RunInternalRole(argc, argv)) return *done;
  CLI::App app("Shows and exercises kvmd, the marketplace for KV cache blocks of this node.", "kvctl");
  app.set_version_flag("--version", VersionText());
  app.footer(kFooter);
  // Also accepts no command, which is refused below: then the message for an unknown command names
  // it, instead of saying that a command is missing.
  app.require_subcommand(0, 1);
  app.fallthrough();
  CommonOptions common;
  AddCommonOptions(app, common);
  Action action;
  AddViewCommands(app, common, action);
  AddKeyCommands(app, common, action);
  AddDoctorCommand(app, common, action);
  AddLiveCommands(app, common, action);
#ifdef KVM_HAVE_PROMETHEUS
  AddExporterCommand(app, common, action);
#endif
  AddMeshCommands(app, common, action);
  AddReplayCommand(app, common, action);
  AddSimulateCommand(app, common, action);
  AddBenchCommands(app, common, action);
  AddSupportCommands(app, common, action);
  AddCompletionCommand(app, action);
  try {
    app.parse(argc, argv);
    if (app.get_subcommands().empty()) throw CLI::RequiredError("A subcommand");
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    // CLI11 reports the missing subcommand before it reports the unknown word in its place.
    const std::vector<std::string> unknown = app.remaining(true);
    const bool wrong_command = dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && !unknown.empty();
    std::cerr << "kvctl: " << (wrong_command ? "unknown command or option " + unknown.front() : error.what()) << " (kvctl --help)\n";
    return kUsage;
  }
  return action ? action() : static_cast<int>(kUsage);
}

// A reader that has closed the pipe (`kvctl ls | head`) is no error. Any other failure to write the
// output is one.
int AfterOutput(int code) {
  std::cout.flush();
  if (std::cout.good()) return code;
  const int reason = errno;
  pollfd poll_fd{STDOUT_FILENO, POLLOUT, 0};
  if (::poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLERR) != 0) return code;
  std::cerr << "kvctl: " << kvm::SystemError("write the output", reason).ToString() << '\n';
  return kvm::ctl::kUsage;
}

}  // namespace

int main(int argc, char** argv) {
  kvm::OpenStandardFds();
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return AfterOutput(Main(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "kvctl: " << error.what() << '\n';
    return kvm::ctl::kUnhealthy;
  }
}
