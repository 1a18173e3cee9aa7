// Converts the segments of a region from their wire format.
#pragma once

#include <vector>

#include "client/connection/link.h"
#include "cuda/memory_backend.h"

namespace kvm {

// Handles for one call of MemoryBackend::Map or Take, which consumes them. `fds`: the generation
// table's, then the segments'; they are duplicated. kProtocol: one is missing. kSystem.
[[nodiscard]] Result<std::vector<SegmentHandle>> HandlesOf(const kvmwire::RegionDescriptor& wire, const Fds& fds);

// The same, but takes the segments' descriptors out of `fds` instead of duplicating them.
[[nodiscard]] Result<std::vector<SegmentHandle>> TakeHandles(const kvmwire::RegionDescriptor& wire, Fds& fds);

PeerOrigin OriginOf(const kvmwire::RegionDescriptor& wire);

}  // namespace kvm
