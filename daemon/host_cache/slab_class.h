// SlabClass: the slabs for one kind of block. Each of their slots can hold any block of that kind.
//
// SlabPool makes and owns it (slab_pool.h); each slab refers to its class. A class owns the table
// that says which block each slot of its slabs holds (slot_table.h).
//
// Invariant: a class lives while it has slabs; slabs that are still being allocated count.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "daemon/host_cache/slot_table.h"
#include "daemon/registry/domain.h"

namespace kvm::daemon {

struct SlabClass {
  // What all slabs of a class have in common; it is the class's name.
  struct Kind {
    const Domain* domain = nullptr;
    std::uint32_t model = 0;
    std::string shard;  // of the descriptor, packed
    std::uint64_t block_bytes = 0;
    bool checksums = false;
    friend auto operator<=>(const Kind&, const Kind&) = default;  // NOLINT(modernize-use-nullptr): the comparison that the compiler makes
  };

  SlabClass(Kind its_kind, Domain& its_domain, SlotTable its_blocks, std::string its_fingerprint, std::vector<std::uint32_t> its_shard)
      : kind(std::move(its_kind)),
        domain(its_domain),
        blocks(std::move(its_blocks)),
        fingerprint(std::move(its_fingerprint)),
        shard(std::move(its_shard)) {}

  std::uint64_t slab_bytes() const noexcept { return kind.block_bytes * blocks.slots_per_slab(); }
  // What a slab of so many bytes counts as: with tiny blocks, kvmd's own memory for its slots is
  // more than the slab.
  std::uint64_t Cost(std::uint64_t bytes) const noexcept { return std::max(bytes, SlotTable::kBytesPerSlot * blocks.slots_per_slab()); }

  const Kind kind;
  Domain& domain;
  SlotTable blocks;
  const std::string fingerprint;
  const std::vector<std::uint32_t> shard;
  std::uint32_t slabs = 0;  // includes those that are being allocated
};

}  // namespace kvm::daemon
