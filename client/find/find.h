// Longest common prefix over a snapshot of the registry.
#pragma once

#include <span>

#include "client/find/match_impl.h"

namespace kvm {

// For whom sources are chosen.
struct FindTarget {
  std::size_t device = DeviceSet::kHost;  // whose paths decide which source is nearest
  bool must_reach = false;                // pass over what that device can't copy from
  bool include_own = true;
  std::uint64_t spread = 0;  // differs between clients, so that importers of a replicated block use different sources
};

// Appends the leading keys' sources to `out` (which must be empty) and sets `out.end`.
// Lock-free; no system call.
void FindIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindTarget& target, Match::Impl& out);

}  // namespace kvm
