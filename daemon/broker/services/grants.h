// Makes memory for clients, and checks that memory which a client registers is its own.
//
// A grant says what it was made for, and for whom, in the name of its memfd, which no process can
// change. So memory that kvmd made for one role or user can't be used for another, slabs of the
// host cache can't be registered at all, and a restarted kvmd recognises the grants of the previous
// one. Inode and mode prove that kvmd made the memory (WritersOf).
#pragma once

#include <cstdint>
#include <string>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::daemon {

struct Region;

enum class GrantRole { kGenerationTable, kPayload };

// Makes granted memory for a client of `uid`: it reads as zeros and is not allocated yet. Errors:
// those of CreateGrantable.
[[nodiscard]] Result<UniqueFd> MakeGrant(GrantRole role, std::uint32_t uid, const std::string& client_name, std::uint64_t size_bytes);

// Whether a client of `uid` may register the memory of a region: it must have been granted to that
// user, for the role that it has here, or be sealed and made by a process of that user. kvmd's own
// sealed memory (lists of records, registries) is allowed, since clients can read all of it anyway.
// kPermissionDenied: the message names the memory.
[[nodiscard]] Status CheckBelongs(const Region& region, std::uint32_t uid);

}  // namespace kvm::daemon
