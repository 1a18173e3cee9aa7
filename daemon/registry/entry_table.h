// EntryTable: the entries of one domain, which say which published block has which key. It
// publishes and retracts blocks, drops stale entries, and makes room when the index is full.
//
// Called by Domain. It owns the write side of the segment's index, and the two positions at which
// the eviction and the sweep go on (clock hands). The policy (eviction.h) chooses which entry makes
// room; this class evicts it.
//
// Invariants:
//   - The region of every entry is in the region table: a region's last entry is erased before the
//     region leaves that table.
//   - Region::slots names the slot of each block's entry, Region::entries and Account::entries
//     count them.
//   - Each erased entry of a region is reported to the region's filler.
// Work that grows with a client's size is cut into slices. Single-threaded.
#pragma once

#include <cstdint>

#include "daemon/registry/accounts.h"
#include "daemon/registry/block_index_writer.h"
#include "daemon/registry/eviction.h"
#include "daemon/registry/region_table.h"
#include "daemon/system/config.h"
#include "daemon/system/work_meter.h"

namespace kvm::daemon {

class EntryTable {
 public:
  // All outlive the entries. The segment's index is empty.
  EntryTable(const Config& config, RegistrySegment& segment, RegionTable& regions, Accounts& accounts);

  // Of a message that is worked on in slices: how far it has come, and what will be answered.
  struct Publishing {
    std::size_t next = 0;  // record
    kvmwire::PublishAck ack;
  };
  // `records`: whole ones, in `publish`. Goes on where it stopped, until the budget is used up.
  // True: nothing is left to do.
  bool Publish(ClientId client, const kvmwire::Publish& publish, Publishing& progress, const WorkBudget& budget);
  // Takes over an entry of an older registry, if its block is still what it says. True: it is in.
  bool Restore(Region& region, const IndexEntry& entry);
  // The same of the blocks of `retract`, from `next` on.
  bool Retract(ClientId client, const kvmwire::Retract& retract, int& next, const WorkBudget& budget);
  // Drops entries whose block has been rewritten since, looking at `slots` slots at most, and as
  // far as one slice of work goes; slows down by itself while there is little to find.
  void Sweep(std::uint32_t slots);
  // Drops entries of a region that is leaving, as many as `blocks` allows, and takes them off it.
  // True: none is left.
  bool Reap(Region& region, std::uint32_t& blocks, const WorkBudget& budget) noexcept;

  // Publishes a block of a live region that kvmd fills itself; false if there is no room. If the
  // key has the maximum of replicas, one of them is dropped in favour of this one, since this one
  // survives when workers recycle their pools.
  bool PublishCached(Region& region, const PublishRecord& record);
  void EraseCached(Region& region, std::uint32_t block);

  // A list with a kvm::PublishRecord for each block of an orphan that is published and not
  // rewritten since. It is written in slices; entries may leave meanwhile, and none is added.
  struct RecordList {
    OwnedMemory memory;
    std::uint64_t count = 0;  // written by now
    std::uint32_t next = 0;   // block
  };
  // An empty list with room for all. kSystem: no memory for it.
  [[nodiscard]] static Result<RecordList> BeginRecords(const Region& region);
  // Goes on until the budget is used up. True: nothing is left to do.
  bool GoOnRecords(const Region& region, RecordList& list, const WorkBudget& budget) const;

  std::uint64_t size() const noexcept { return index_.entries(); }
  // The entry of a block; its region_epoch is 0 if the block has none. Precondition: block <
  // block_count.
  IndexEntry Of(const Region& region, std::uint32_t block) const noexcept;
  const BlockIndexWriter& index() const noexcept { return index_; }
  bool IsStale(const IndexEntry& entry) const noexcept;
  // Writes the number of entries to the segment's header.
  void WriteCount() noexcept;

 private:
  enum class Outcome { kInserted, kFull, kReplicas, kStale, kInvalid };
  Outcome PublishOne(Region& region, const PublishRecord& record, std::uint32_t now_s);
  bool MakeRoomForReplica(const Region& publisher, const BlockKey& key);
  bool DropStaleReplica(const BlockKey& key);
  void DropReplica(const BlockKey& key);
  bool MakeRoom(const Region& publisher);
  bool MakeRoomOfUser(const Region& publisher);
  void Erase(std::uint64_t slot, std::atomic<std::uint64_t>& counter) noexcept;
  std::uint32_t SecondsSinceStart() const noexcept { return static_cast<std::uint32_t>((MonotonicNs() - started_ns_) / 1'000'000'000); }

  const Config& config_;
  RegistrySegment& segment_;
  RegionTable& regions_;
  Accounts& accounts_;
  BlockIndexWriter index_;
  ClockEviction eviction_;
  std::uint64_t sweep_hand_ = 0;
  unsigned sweep_idle_ = 0;  // whole rounds in which the sweeper found next to nothing
  std::uint64_t swept_in_round_ = 0;
  const std::uint64_t started_ns_ = MonotonicNs();
};

}  // namespace kvm::daemon
