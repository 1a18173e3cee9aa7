// Processes that kvctl starts from its own binary: "kvctl replay-worker FD" and "kvctl bench-peer
// FD". Not part of its command line: they speak over the socket FD with the kvctl that started
// them.
#pragma once

#include <optional>

namespace kvm::ctl {

// The exit code, if this process was started for such a role.
std::optional<int> RunInternalRole(int argc, char** argv);

}  // namespace kvm::ctl
