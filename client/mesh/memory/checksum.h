// The checksum of a block's bytes: on the wire to a peer, and in a record of the disk cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvm::mesh {

// XXH3 with 64 bits: what FetchedBlock.checksum is.
std::uint64_t BlockChecksum(std::span<const std::byte> bytes) noexcept;

}  // namespace kvm::mesh
