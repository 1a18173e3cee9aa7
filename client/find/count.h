// CountIn: how many leading keys a snapshot of the registry has, without their sources.
#pragma once

#include <span>

#include "client/find/find.h"

namespace kvm {

struct CountedKeys {
  std::size_t found = 0;
  MatchEnd end = MatchEnd::kUnavailable;  // why not more
};

// As many and for the reason that FindIn finds, and without what FindIn writes for each key: a
// scheduler asks how far a prefix reaches long before a worker imports it. Lock-free; no system
// call.
CountedKeys CountIn(const PeerSnapshot& snapshot, std::span<const BlockKey> keys, const FindTarget& target) noexcept;

}  // namespace kvm
