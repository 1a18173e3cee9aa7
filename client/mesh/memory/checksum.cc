#include "client/mesh/memory/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvm::mesh {

std::uint64_t BlockChecksum(std::span<const std::byte> bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }

}  // namespace kvm::mesh
