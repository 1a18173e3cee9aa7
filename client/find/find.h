// FindIn: the longest run of leading keys that a snapshot of the registry has, with a source for
// each.
#pragma once

#include <span>

#include "client/find/match_impl.h"

namespace kvm {

// The importer for which sources are chosen.
struct FindTarget {
  std::size_t device = DeviceSet::kHost;  // the device from which a source's distance counts
  bool must_reach = false;                // leave out regions that this device can't copy from
  bool include_own = true;
  // Differs between clients, so that importers of a replicated block use different sources
  std::uint64_t spread = 0;
};

// Appends the sources of the leading keys to `out`, which must be empty, and sets `out.end`.
// Lock-free; no system call.
void FindIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindTarget& target, Match::Impl& out);

}  // namespace kvm
