// How many descriptors kvmd may keep for the regions of one domain: they are one table for all, which connections need, too.
#pragma once

#include <cstdint>

#include "daemon/config.h"

namespace kvm::daemon {

// What --max-fds-per-domain says; with 0, half of what this process's limit (RLIMIT_NOFILE) leaves when each connection
// has a socket and a pidfd, so that one domain alone can't use it up.
std::uint64_t MaxFdsPerDomain(const Config& config) noexcept;
// The same, by a given limit of the process.
std::uint64_t MaxFdsPerDomain(const Config& config, std::uint64_t process_limit) noexcept;

}  // namespace kvm::daemon
