// Which prefixes are used most, from the ends of imports that kvmd reports and the parents that the
// index names.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kvm/block_key.h"

namespace kvm::ctl {

// What the index says of a published block.
struct IndexedBlock {
  std::uint64_t parent_lo = 0;
  std::uint32_t depth = 0;  // blocks before it
  BlockKey key;
};

// Where imports ended.
struct HotEnd {
  BlockKey key{};
  std::uint32_t depth = 0;
  std::uint64_t uses = 0;
  std::string model{};
};

struct HotPrefixRow {
  BlockKey key;                // of the prefix's last block
  std::uint32_t depth = 0;     // blocks before that one
  std::uint64_t uses = 0;      // imports that ended there or behind it
  std::uint64_t ends = 0;      // of those: that ended there
  std::uint64_t branches = 0;  // different blocks that followed it in those imports
  bool indexed = false;        // it can be found now
  std::string model;
};

// The block of that lower half of a key; none: it is not published.
using IndexLookup = std::function<std::optional<IndexedBlock>(std::uint64_t key_lo)>;

// Each prefix at which imports ended or parted, the most used first, of several alike the longest
// first; at most `limit`, 0: all. Parents are names that publishers chose, so they may form a ring.
std::vector<HotPrefixRow> HottestPrefixes(const std::vector<HotEnd>& ends, const IndexLookup& index, std::size_t limit);

}  // namespace kvm::ctl
