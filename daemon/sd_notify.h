// The service manager's protocols, spoken directly: readiness (NOTIFY_SOCKET) and socket activation
// (LISTEN_FDS). Source: the man pages sd_notify(3) and sd_listen_fds(3).
#pragma once

#include <string>

#include "proto/unique_fd.h"

namespace kvm::daemon {

// Sends "READY=1\nSTATUS=…" and the like; does nothing without a service manager.
void NotifyServiceManager(const std::string& state) noexcept;

// The listening socket that the service manager passed, if it did. Call once.
UniqueFd TakeActivatedSocket() noexcept;

}  // namespace kvm::daemon
