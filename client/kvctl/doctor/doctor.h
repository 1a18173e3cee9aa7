// kvctl doctor: one line for each check, with what was seen.
#pragma once

#include "client/kvctl/cli/common_options.h"

namespace kvm::ctl {

// Prints to stdout and returns kvctl's exit code.
int RunDoctor(const CommonOptions& common);

}  // namespace kvm::ctl
