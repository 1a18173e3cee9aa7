// The regions of one domain by row, and the rows of the segment that show them to readers.
//
// Called by Domain, which adds and frees regions, by OrphanRegions, and by EntryTable, which finds
// the region of an entry by its row. It owns the regions.
//
// Invariants:
//   - A row's epoch is never used twice, and a freed row is reused as late as possible, so that
//     (row, epoch) names one region for ever.
//   - A file of shared memory belongs to one serving region at most.
//   - A region's phase changes in Enter alone, which keeps the counts and the row true.
// Single-threaded. Pointers are valid until Free.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "daemon/registry/region.h"
#include "daemon/registry/registry_segment.h"

namespace kvm::daemon {

struct Owner {
  ClientId client = 0;
  std::uint32_t pid = 0, uid = 0;
};

class RegionTable {
 public:
  // The segment has room for `rows` regions and outlives the table. `first_epoch`: of the first
  // region; 1, but in tests.
  RegionTable(RegistrySegment& segment, std::uint32_t rows, std::uint32_t first_epoch = 1)
      : segment_(segment), regions_(rows), next_region_epoch_(first_epoch) {}

  // kAlreadyExists (the name, or memory that another region has), kBadGeometry (it contradicts
  // another region), kResourceExhausted (the table is full, or no epoch is left). The region is
  // live then, and belongs to no account yet (accounts.h).
  [[nodiscard]] Result<Region*> Add(const Owner& owner, std::unique_ptr<Region> region);
  // Destroys the region and clears its row. Precondition: the region does not serve.
  void Free(Region& region) noexcept;

  // Precondition: a region has the row.
  Region& At(std::uint32_t row) const noexcept { return *regions_[row]; }
  // Live or leaving; null if none
  Region* Find(std::uint32_t row, std::uint32_t region_epoch) noexcept;
  Region* FindServing(std::uint32_t owner_uid, const std::string& name) noexcept;
  std::vector<Region*> Of(ClientId owner) noexcept;
  std::vector<Region*> ServingOfModel(std::uint32_t model) noexcept;
  // Looks at the next `most` serving regions in turn, and returns one whose memory is not whole any
  // more; null if there is none.
  Region* FindDamaged(std::uint32_t most) noexcept;
  // A free row holds null.
  const std::vector<std::unique_ptr<Region>>& rows() const noexcept { return regions_; }

  // Takes a region to its next phase (RegionPhase), and updates the counts and the row. Every
  // change of a phase is made here. Once a region does not serve any more, its memory may be
  // registered again, though the region still has its row.
  void Enter(Region& region, RegionPhase next) noexcept;
  void WriteChanged();  // writes the rows whose entry count has changed

  std::uint32_t live() const noexcept { return live_; }
  std::uint32_t orphans() const noexcept { return orphans_; }

 private:
  Status CheckAgainstOthers(const Region& region, const Owner& owner) const;
  void Write(Region& region) noexcept;

  RegistrySegment& segment_;
  std::vector<std::unique_ptr<Region>> regions_;   // by row; null: free
  std::map<FileId, std::uint32_t> row_of_memory_;  // of serving regions
  std::uint32_t look_hand_ = 0;                    // the row whose memory FindDamaged looks at next
  std::uint32_t live_ = 0, orphans_ = 0;
  // Where the search for a free row begins, so that a freed row is reused as late as possible
  std::uint32_t next_row_ = 0;
  std::uint32_t next_region_epoch_;  // 0: none is left
};

}  // namespace kvm::daemon
