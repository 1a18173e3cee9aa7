// kvctl doctor: one line for each check, with what was seen.
#pragma once

#include <string>

#include "client/kvctl/cli/common_options.h"

namespace kvm::ctl {

// Prints to stdout and returns kvctl's exit code. `mesh_socket`: of kvmd-mesh; empty: this user's,
// if there is one.
int RunDoctor(const CommonOptions& common, const std::string& mesh_socket);

}  // namespace kvm::ctl
