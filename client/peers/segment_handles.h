// A region's segments as they come over the socket.
#pragma once

#include <vector>

#include "client/connection/link.h"
#include "cuda/memory_backend.h"

namespace kvm {

// Handles for one MemoryBackend::Map or Take, which consumes them; `fds` stays. `fds`: the generation table's, then the
// segments'. kProtocol: one is missing. kSystem.
[[nodiscard]] Result<std::vector<SegmentHandle>> HandlesOf(const kvmwire::RegionDescriptor& wire, const Fds& fds);

// The same, and takes the segments' descriptors out of `fds` instead of duplicating them.
[[nodiscard]] Result<std::vector<SegmentHandle>> TakeHandles(const kvmwire::RegionDescriptor& wire, Fds& fds);

PeerOrigin OriginOf(const kvmwire::RegionDescriptor& wire);

}  // namespace kvm
