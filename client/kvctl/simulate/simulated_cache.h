// Hits of a cache of blocks over a trace. A request hits its leading blocks that are resident, up to the first that
// is not; then all of its blocks are resident, as far as they fit.
#pragma once

#include <cstdint>

#include "client/kvctl/workload/block_trace.h"
#include "daemon/policy/eviction_policy.h"

namespace kvm::ctl {

// `policy` is new and made for `capacity`, in [1, 2^32 - 1).
std::uint64_t SimulateCache(const BlockTrace& trace, policy::EvictionPolicy& policy, std::uint32_t capacity);

// The most blocks that any cache of this capacity can hit, with all of the trace known beforehand and free to take in a
// block or not. It is Belady's MIN with a request's blocks used from the first to the last: of the blocks that are there
// and the one that comes, the one whose next use is farthest leaves.
//
// Why that is the optimum for prefix hits, and not only for single blocks: a request that uses a block uses its parent
// just before, so a parent's next use is always the nearer one and it never leaves before its children. What is there when a
// request comes is therefore whole prefixes, every block of the request that is there is a prefix hit, and MIN has the
// most of those, by Belady's theorem. (From the last to the first, the tail of a prompt stays and its head leaves.)
//
// Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5
// (1966).
std::uint64_t SimulateMin(const BlockTrace& trace, std::uint32_t capacity);

}  // namespace kvm::ctl
