// Slabs of one kind of block: any of their slots can hold any of these blocks.
//
// Made and owned by SlabPool (slab_pool.h); each slab refers to its own. A class owns the table of
// what its slots hold (slot_table.h), over all of its slabs.
//
// Invariant: a class lives while it has slabs, those that are still being allocated included.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "daemon/host_cache/slot_table.h"
#include "daemon/registry/domain.h"

namespace kvm::daemon {

struct SlabClass {
  // Everything by which slabs must agree; names the class.
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

  const Kind kind;
  Domain& domain;
  SlotTable blocks;
  const std::string fingerprint;
  const std::vector<std::uint32_t> shard;
  std::uint32_t slabs = 0;  // being allocated ones included
};

}  // namespace kvm::daemon
