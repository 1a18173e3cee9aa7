// Counts the hits of a cache of blocks over a trace. A request hits its leading blocks that are
// resident, up to the first that is not; then all of its blocks become resident, as far as they
// fit.
#pragma once

#include <cstdint>

#include "client/kvctl/workload/block_trace.h"
#include "daemon/policy/eviction_policy.h"

namespace kvm::ctl {

// `policy`: new, and made for `capacity`, which lies in [1, 2^32 - 1).
std::uint64_t SimulateCache(const BlockTrace& trace, policy::EvictionPolicy& policy, std::uint32_t capacity);

// The most blocks that any cache of this capacity can hit if it knows the whole trace beforehand
// and need not admit a block. This is Belady's MIN, with a request's blocks used from the first to
// the last: of the resident blocks and the new one, the block whose next use is farthest leaves.
//
// Why that is the optimum for prefix hits, and not only for single blocks: a request that uses a
// block uses its parent just before, so the parent's next use is nearer and it never leaves before
// its children. So the resident blocks are always whole prefixes, every resident block of a request
// is a prefix hit, and by Belady's theorem MIN has the most of those. (If blocks were used from the
// last to the first, the end of a prompt would stay and its beginning leave.)
//
// Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM
// Systems Journal 5 (1966).
std::uint64_t SimulateMin(const BlockTrace& trace, std::uint32_t capacity);

}  // namespace kvm::ctl
