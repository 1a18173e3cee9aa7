// Names of the roles in which kvctl starts its own binary (internal_roles.h). The role is the first
// argument of such a process.
#pragma once

namespace kvm::ctl {

inline constexpr const char* kReplayWorkerRole = "replay-worker";
inline constexpr const char* kBenchPeerRole = "bench-peer";

}  // namespace kvm::ctl
