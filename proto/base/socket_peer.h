// Who is at the other end of a Unix socket, as the kernel knows it.
#pragma once

#include <sys/socket.h>

#include <cstdint>

#include "kvm/error.h"

namespace kvm {

// No user has it.
constexpr std::uint32_t kNoUser = static_cast<uid_t>(-1);

// The process that connected or, for who has connected, that listens.
[[nodiscard]] Result<ucred> PeerOf(int socket) noexcept;
// Its user; kNoUser if the kernel does not say.
std::uint32_t PeerUserOf(int socket) noexcept;

}  // namespace kvm
