// Memory that kvmd makes for clients, and whose memory it is that a client registers.
//
// A grant says what it was made for, and for whom, in the name of its memfd, which nobody can change: so what kvmd made
// for one role or user is not taken for another's, slabs of the host cache are no grants at all, and a kvmd that was
// restarted knows the grants of the one before. That kvmd made the memory is told by inode and mode (WritersOf).
#pragma once

#include <cstdint>
#include <string>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

struct Region;

enum class GrantRole { kGenerationTable, kPayload };

// Granted memory of zeros, not allocated yet, for a client of `uid`. What CreateGrantable says.
[[nodiscard]] Result<UniqueFd> MakeGrant(GrantRole role, std::uint32_t uid, const std::string& client_name, std::uint64_t size_bytes);

// Whether the memory of a region that a client of `uid` sends is that user's to register: granted to it, in the role that it
// has here, or sealed and made by a process of its own. kvmd's own sealed memory (lists of records, registries) passes; it
// has nothing that its receivers don't see. kPermissionDenied: the message names the memory.
[[nodiscard]] Status CheckBelongs(const Region& region, std::uint32_t uid);

}  // namespace kvm::daemon
