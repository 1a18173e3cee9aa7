// What /proc says of kvmd itself, and watching for the end of another process.
#pragma once

#include <cstdint>

#include "proto/unique_fd.h"

namespace kvm::daemon {

std::uint64_t ResidentBytes() noexcept;  // 0 if unknown
std::uint32_t OpenFds() noexcept;

// A pidfd of the process at the other end of `socket`, which polls readable once that has ended; none
// if the kernel can't say (another PID namespace, an old kernel): EOF then is the only sign.
UniqueFd PeerPidFd(int socket, std::uint32_t pid) noexcept;

}  // namespace kvm::daemon
