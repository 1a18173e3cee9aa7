// Command line of `kvctl doctor`.
#include <CLI/CLI.hpp>

#include "client/kvctl/doctor/doctor.h"

namespace kvm::ctl {

void AddDoctorCommand(CLI::App& app, const CommonOptions& common, Action& action) {
  CLI::App* command = app.add_subcommand("doctor", "Checks everything that kvmd and its clients need; exit code 3 if a check fails");
  command->callback([&common, &action] { action = [&common] { return RunDoctor(common); }; });
}

}  // namespace kvm::ctl
