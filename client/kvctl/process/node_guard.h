// Checks for runs on the node's own kvmd: that they use only free room, and leave nothing behind.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "client/kvctl/cli/observer.h"
#include "kvm/error.h"

namespace kvm::ctl {

// Connects, and tries again within `timeout` if kvmd is there but ends, as one that is being
// restarted does. Errors: the last of Observer::Connect; at once if no kvmd listens at the first
// try.
[[nodiscard]] Result<Observer> ConnectDespiteRestart(const std::string& socket, std::chrono::milliseconds timeout);

// Checks that so many blocks can be published without an eviction of the node's own blocks.
// kResourceExhausted: they can't.
[[nodiscard]] Status CheckRoom(const Observer& observer, std::uint64_t blocks);

// The names by which a run's regions and models are recognised.
struct RunMarks {
  std::string region;    // part of each region's name
  std::string revision;  // of its models; empty: the run uses models of others
};

// Waits until kvmd has no region and model of the run any more; the run's processes have just
// ended. kSystem: some are left after a few seconds. Other codes: those of ConnectDespiteRestart.
[[nodiscard]] Status CheckNothingLeft(const std::string& socket, std::chrono::milliseconds timeout, const RunMarks& marks);

}  // namespace kvm::ctl
