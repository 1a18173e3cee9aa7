// Longest common prefix over a snapshot of the registry.
#pragma once

#include <span>

#include "client/match_impl.h"

namespace kvm {

// Appends the leading keys' sources to `out` (which must be empty) and sets `out.end`.
// `spread` differs between clients, so that importers of a replicated block use different sources.
// Lock-free; no system call.
void FindIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindOptions& options, std::uint64_t spread,
            Match::Impl& out);

}  // namespace kvm
