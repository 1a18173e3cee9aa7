// Memory that kvmd makes for a region, so that it can outlive this process, and memory of dead
// processes that it gives up.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "client/connection/link.h"
#include "kvclient/client.h"

namespace kvm {

// Makes memory of these sizes; none: there is none to be had.
using GrantMemory = std::function<Fds(std::span<const std::uint64_t> size_bytes)>;

// Asks kvmd for memory that can outlive this process; nothing if the region need not, or kvmd is
// away. `link` outlives what is returned.
GrantMemory GrantUntil(Link& link, const RegionOptions& region, Deadline deadline);

// The same for a region that is to be registered: what dead processes have left that it takes the
// place of goes first, and `gave_way` says that there was such. All arguments outlive what is
// returned.
GrantMemory GrantInPlaceOfTheDead(Link& link, const Model& model, const RegionOptions& region, Deadline deadline, bool& gave_way);

// As Client::ReclaimOrphans.
[[nodiscard]] Result<ReclaimedMemory> ReclaimOrphans(Link& link, const ReclaimOptions& what, Deadline deadline);

}  // namespace kvm
