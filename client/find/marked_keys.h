// What a lookup sees of marks (kvclient/computing.h): which keys of a prompt are marked, and
// whether a missing one is.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvclient/computing.h"
#include "proto/shm/registry_view.h"

namespace kvm {

// Of the keys of blocks that are to be computed, those that are marked: first, last and a sample.
std::vector<BlockKey> KeysToMark(std::span<const BlockKey> missing, std::size_t most);

// The mark of the first key of `keys` from index `found` on that has one. `client`: this one. Stops
// at once if nothing is marked in the registry.
std::optional<BeingComputed> FindMark(const MarkReader& marks, std::span<const BlockKey> keys, std::size_t found,
                                      std::uint64_t client) noexcept;

}  // namespace kvm
