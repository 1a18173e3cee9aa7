// Asks kvmd for memory that can outlive this process, and to free the memory of dead processes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "client/connection/link.h"
#include "kvclient/client.h"

namespace kvm {

// Asks kvmd for memfds of these sizes. Empty if kvmd can't provide them.
using GrantMemory = std::function<Fds(std::span<const std::uint64_t> size_bytes)>;

// Returns a function that asks kvmd for memory. The function returns nothing if the region need not
// outlive this process, or kvmd is away. `link` must outlive the function.
GrantMemory GrantUntil(Link& link, const RegionOptions& region, Deadline deadline);

// The same for a region that is to be registered: kvmd first frees the regions of dead processes
// whose place it takes, and `gave_way` is set if there were any. All arguments must outlive the
// function.
GrantMemory GrantInPlaceOfTheDead(Link& link, const Model& model, const RegionOptions& region, Deadline deadline, bool& gave_way);

// See Client::ReclaimOrphans.
[[nodiscard]] Result<ReclaimedMemory> ReclaimOrphans(Link& link, const ReclaimOptions& what, Deadline deadline);

}  // namespace kvm
