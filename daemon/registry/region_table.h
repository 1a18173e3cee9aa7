// The regions of one domain by row, and the rows of the segment that show them to readers.
//
// Called by Domain, which adds and frees regions, by OrphanRegions, and by EntryTable, which finds
// the region of an entry by its row. It owns the regions.
//
// Invariants:
//   - A row's epoch is never used twice, and a row rests before it is reused: names of regions stay
//     unambiguous.
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
  // The segment has room for `rows` regions and outlives the table.
  RegionTable(RegistrySegment& segment, std::uint32_t rows) : segment_(segment), regions_(rows) {}

  // kAlreadyExists (name; memory, of which a region has its own alone), kBadGeometry (against
  // others), kResourceExhausted (table). The region is live then, and in no account (accounts.h).
  [[nodiscard]] Result<Region*> Add(const Owner& owner, std::unique_ptr<Region> region);
  // Its row shows nothing any more. Precondition: it serves nobody.
  void Free(Region& region) noexcept;

  // Precondition: a region has the row.
  Region& At(std::uint32_t row) const noexcept { return *regions_[row]; }
  Region* Find(std::uint32_t row, std::uint32_t region_epoch) noexcept;  // live or leaving; null if none
  Region* FindServing(std::uint32_t owner_uid, const std::string& name) noexcept;
  std::vector<Region*> Of(ClientId owner) noexcept;
  std::vector<Region*> ServingOfModel(std::uint32_t model) noexcept;
  // A serving region whose memory is not whole any more, among the next `most` that it is their
  // turn to be looked at; else null.
  Region* FindDamaged(std::uint32_t most) noexcept;
  // Rows that are free hold null.
  const std::vector<std::unique_ptr<Region>>& rows() const noexcept { return regions_; }

  // Every step of a region's goes through here (RegionPhase): the counts and the row follow it. Its
  // memory may be registered anew once it does not serve any more, though it still has a row.
  void Enter(Region& region, RegionPhase next) noexcept;
  void WriteChanged();  // entry counts of regions that changed

  std::uint32_t live() const noexcept { return live_; }
  std::uint32_t orphans() const noexcept { return orphans_; }

 private:
  Status CheckAgainstOthers(const Region& region, const Owner& owner) const;
  void Write(Region& region) noexcept;

  RegistrySegment& segment_;
  std::vector<std::unique_ptr<Region>> regions_;   // by row; null: free
  std::map<FileId, std::uint32_t> row_of_memory_;  // of serving regions
  std::uint32_t look_hand_ = 0;                    // row whose memory is looked at next
  std::uint32_t live_ = 0, orphans_ = 0;
  std::uint32_t next_row_ = 0;  // where the search for a free row begins: rows rest before they are reused
  std::uint32_t next_region_epoch_ = 1;
};

}  // namespace kvm::daemon
