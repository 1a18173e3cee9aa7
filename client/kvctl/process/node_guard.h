// For runs on the node's own kvmd: they use only free room, and leave nothing behind.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "client/kvctl/cli/observer.h"
#include "kvm/error.h"

namespace kvm::ctl {

// Whether so many blocks can be published without one of the node's being evicted for them. kResourceExhausted: no.
[[nodiscard]] Status CheckRoom(const Observer& observer, std::uint64_t blocks);

// How what a run made is called.
struct RunMarks {
  std::string region;    // part of each region's name
  std::string revision;  // of its models; empty: they are not its own
};

// Waits until kvmd has nothing of the run any more, as its processes have just ended. kSystem: some is still there after
// a few seconds. Else why kvmd can't be asked.
[[nodiscard]] Status CheckNothingLeft(const std::string& socket, std::chrono::milliseconds timeout, const RunMarks& marks);

}  // namespace kvm::ctl
