// Command line of `kvctl doctor`.
#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "client/kvctl/doctor/doctor.h"

namespace kvm::ctl {

void AddDoctorCommand(CLI::App& app, const CommonOptions& common, Action& action) {
  CLI::App* command = app.add_subcommand("doctor", "Checks everything that kvmd and its clients need; exit code 3 if a check fails");
  auto mesh_socket = std::make_shared<std::string>();
  command->add_option("--mesh-socket", *mesh_socket,
                      "kvmd-mesh's Unix socket; default: /run/kvmd-mesh/UID/mesh.sock, which is checked if it is there");
  command->callback([&common, &action, mesh_socket] { action = [&common, mesh_socket] { return RunDoctor(common, *mesh_socket); }; });
}

}  // namespace kvm::ctl
