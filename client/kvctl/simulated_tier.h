// Hits of a tier of blocks over a trace. A request hits its leading blocks that are resident, up to the first that
// is not; then all of its blocks are resident, as far as they fit.
#pragma once

#include <cstdint>

#include "client/kvctl/block_trace.h"
#include "daemon/policy/eviction_policy.h"

namespace kvm::ctl {

// `policy` is new and made for `capacity`, in [1, 2^32 - 1).
std::uint64_t SimulateTier(const BlockTrace& trace, policy::EvictionPolicy& policy, std::uint32_t capacity);

// Belady's MIN: of the blocks that are there and the one that comes, the one whose next use is farthest leaves.
// `order` is in which a request uses its blocks. kLastToFirst is the order of the policies that it is compared
// with (policy::Order); kFirstToLast lets tails leave before heads and is what no policy can exceed.
//
// Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5
// (1966).
std::uint64_t SimulateMin(const BlockTrace& trace, std::uint32_t capacity, policy::Order order);

}  // namespace kvm::ctl
