// Match: the longest run of leading keys that is present, with a source for each block.
//
// A match is a snapshot, and cheap to copy since copies share it. Its blocks can be rewritten at
// any time; Import notices that. A match keeps no payload mapped: if a region is withdrawn
// meanwhile, Import misses. It does keep its sources' generation tables mapped, so do not keep a
// match for longer than the request that it serves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "kvclient/computing.h"
#include "kvclient/types.h"

namespace kvm {

// Why a match ended where it did.
enum class MatchEnd : std::uint8_t {
  kComplete = 0,     // every key was found
  kAbsent = 1,       // the next key is not published
  kStale = 2,        // it was published, but its block has been rewritten since
  kUnmapped = 3,     // it is published, in a region that this process has not mapped or can't map
  kUnavailable = 4,  // no registry: never connected to kvmd
};

std::string_view MatchEndName(MatchEnd end) noexcept;  // "complete", "absent", …

// Where a block of a match is copied from; only a hint until the copy has been validated.
struct BlockSource {
  std::uint32_t region = 0;  // row of the region table
  std::uint32_t region_epoch = 0;
  std::uint32_t block = 0;
  std::uint64_t generation = 0;
  bool own = false;  // a region of this client
};

// Thread-safe to read; copies share their contents.
class Match {
 public:
  Match();
  // Leading blocks found: 0 for a miss.
  std::size_t size() const noexcept;
  bool empty() const noexcept { return size() == 0; }  // a miss
  MatchEnd end() const noexcept;                       // why the next key is not in it
  // With FindOptions::computing: the mark of a missing block of the lookup, if there is one. The
  // same for all slices of a match.
  const std::optional<BeingComputed>& being_computed() const noexcept;
  // Precondition: i < size().
  const BlockSource& operator[](std::size_t i) const noexcept;

  // The blocks [first, first + count) as a match of their own, clipped to this match's size.
  // For importing only the blocks that the caller lacks.
  Match Slice(std::size_t first, std::size_t count = static_cast<std::size_t>(-1)) const;

  struct Impl;
  explicit Match(std::shared_ptr<const Impl> impl, std::size_t first, std::size_t count);
  const Impl* impl() const noexcept { return impl_.get(); }
  std::size_t first() const noexcept { return first_; }  // libkvclient's own

 private:
  std::shared_ptr<const Impl> impl_;
  std::size_t first_ = 0, count_ = 0;
};

class Region;

// What Client::Find looks for besides the keys.
struct FindOptions {
  // Where the blocks are wanted: the nearest sources are chosen (same GPU, NVLink, PCIe, host), and
  // blocks in memory that can't be reached from there end the match (kUnmapped). Null: any block
  // that is known counts, in the order of nearness to this client's first GPU.
  const Region* destination = nullptr;
  // False: leave out this client's own regions, whose blocks the caller knows.
  bool include_own = true;
  // Look for marks of the keys that are missing (kvclient/computing.h). Costs a few reads of shared
  // memory, and only if a key is missing.
  bool computing = false;
};

}  // namespace kvm
