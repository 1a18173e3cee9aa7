// Domain: one isolation unit with a registry segment, models, regions and entries of its own.
//
// The only writer of its segment. Everything a client says arrives here already parsed and is checked
// here; no call can fail in a way that harms another client. Work that grows with a client's size
// (dropping its entries, looking for stale ones) is cut into bounded slices. Single-threaded.
//
// region.h draws what becomes of a region. While it leaves, its entries are dropped and importers
// may still have it mapped; its row is reused only after both have ended, its epoch never.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/registry/block_index_writer.h"
#include "daemon/registry/descriptor_quota.h"
#include "daemon/registry/eviction.h"
#include "daemon/registry/model_table.h"
#include "daemon/registry/region.h"
#include "daemon/registry/registry_segment.h"
#include "daemon/system/config.h"
#include "proto/shm/sealed_memory.h"

namespace kvm::daemon {

struct Owner {
  ClientId client = 0;
  std::uint32_t pid = 0, uid = 0;
};

class Domain {
 public:
  // kSystem: no memory for the segment. `config` and `descriptors` must outlive the domain.
  [[nodiscard]] static Result<std::unique_ptr<Domain>> Create(const std::string& name, const Config& config, DescriptorQuota& descriptors);
  ~Domain();

  const std::string& name() const noexcept { return name_; }
  RegistrySegment& segment() noexcept { return segment_; }
  ModelTable& models() noexcept { return models_; }
  std::uint64_t epoch() const noexcept { return segment_.header().epoch; }
  const ModelSpec& SpecOf(const Region& region) const noexcept { return models_.spec(region.info.model); }
  std::uint64_t entries() const noexcept { return index_.entries(); }
  std::uint32_t live_regions() const noexcept { return live_regions_; }
  std::uint32_t orphans() const noexcept { return orphans_; }
  std::uint64_t orphan_bytes() const noexcept;
  std::uint64_t blocks() const noexcept;  // of all regions, published or not
  Account AccountOf(ClientId client) const;

  // ---- regions (domain.cc)

  // Checks all that does not depend on other regions. kNotFound (model), kResourceExhausted (quotas) and what
  // CheckRegion says.
  [[nodiscard]] Result<std::unique_ptr<Region>> PrepareRegion(ClientId owner, kvmwire::RegionDescriptor descriptor,
                                                              std::vector<UniqueFd> fds) const;
  // Orphans that stand in the way of `region` and whose owner has ended: of the same name, or of the same model and
  // shard with blocks of another size.
  std::vector<Region*> OrphansInTheWay(const Region& region, std::uint32_t owner_uid) noexcept;
  // The same of a region that is only announced, and of this user's orphans only: nothing of it has been proved yet.
  std::vector<Region*> OrphansInTheWay(const kvmwire::RegionDescriptor& announced, std::uint32_t owner_uid);
  // kAlreadyExists (name; memory, of which a region has its own alone), kBadGeometry (against others), kResourceExhausted (table).
  [[nodiscard]] Result<Region*> AddRegion(const Owner& owner, std::unique_ptr<Region> region);
  Region* FindRegion(std::uint32_t row, std::uint32_t region_epoch) noexcept;  // live or leaving; null if none
  Region* FindServingRegion(std::uint32_t owner_uid, const std::string& name) noexcept;
  std::vector<Region*> RegionsOf(ClientId owner) noexcept;
  std::vector<Region*> ServingRegionsOfModel(std::uint32_t model) noexcept;
  std::vector<Region*> Orphans() noexcept;  // the oldest first
  // A serving region whose memory is not whole any more, among the next `most` that it is their turn to be looked at; else null.
  Region* FindDamaged(std::uint32_t most) noexcept;
  bool nearly_full() const noexcept;  // few rows are left

  // A live region's owner has gone.
  void MakeOrphan(Region& region, Orphan orphan) noexcept;
  // Gives an orphan to `owner`, entries and all. kResourceExhausted: a quota of the new owner.
  [[nodiscard]] Status TakeOver(Region& region, const Owner& owner);
  // kvm::PublishRecord of each block that is published and not rewritten since; `count` of them. kSystem.
  [[nodiscard]] Result<OwnedMemory> Records(const Region& region, std::uint64_t& count) const;

  // Takes a serving region out: nothing can be published to it any more, and Reap does the rest.
  // `asks_importers`: they are asked to acknowledge, and the row says so meanwhile; else it looks
  // free at once.
  void StartLeaving(Region& region, bool asks_importers) noexcept;
  void StopWaitingFor(ClientId importer) noexcept;  // it has gone
  // Drops up to `blocks` entries of leaving regions and frees the rows of those that have none left and
  // wait for nobody. True if entries are left to drop.
  bool Reap(std::uint32_t blocks);
  void WriteRows();            // entry counts of regions that changed
  bool idle() const noexcept;  // nobody has a region here, except kvmd

  // ---- entries (domain_entries.cc)

  // `records`: whole ones, in `publish`.
  kvmwire::PublishAck Publish(ClientId client, const kvmwire::Publish& publish);
  // Takes over an entry of an older registry, if its block is still what it says. True: it is in.
  bool Restore(Region& region, const IndexEntry& entry);
  void Retract(ClientId client, const kvmwire::Retract& retract);
  // Drops entries whose block has been rewritten since, looking at `slots` slots at most; slows down by
  // itself while there is little to find.
  void Sweep(std::uint32_t slots);

  // The same for a live region that kvmd fills itself; false: no room. One replica of the key makes way if there are
  // enough, since this is the one that stays when pools are recycled.
  bool PublishCached(Region& region, const PublishRecord& record);
  void EraseCached(Region& region, std::uint32_t block);

  // ---- leases (domain_leases.cc)

  struct RetainedBlock {
    Region* region = nullptr;
    std::uint32_t block = 0;
  };
  // Where kvmd itself keeps the block that a match names: there, or another replica of its key. kStale: it is not what
  // the match says any more. kUnsupported: living workers alone have it. kInvalidArgument.
  [[nodiscard]] Result<RetainedBlock> FindRetained(const kvmwire::LeaseSource& source);
  // Until as many Unholds, the block's entry makes room for nobody and its memory is not given up to make room. `region`:
  // of FindRetained. False: it has just gone.
  bool Pin(Region& region, std::uint32_t block);
  void Unpin(Region& region, std::uint32_t block) noexcept;
  std::uint32_t leased_orphans() const noexcept;
  std::uint64_t fds() const noexcept;  // that kvmd keeps for regions and slabs
  std::uint64_t max_fds() const noexcept { return descriptors_.max_of_domain(); }

  std::uint32_t clients = 0;  // connected; kept by the broker

 private:
  Domain(std::string name, const Config& config, DescriptorQuota& descriptors, RegistrySegment segment);

  Status CheckQuotas(ClientId client, std::uint64_t blocks, std::size_t fds) const;
  Status CheckAgainstOthers(const Region& region, const Owner& owner) const;
  // Every step of a region's goes through here: the counts and the row follow it.
  void Enter(Region& region, RegionPhase next) noexcept;
  void FreeRegion(std::uint32_t row) noexcept;
  void LeaveAccount(Region& region) noexcept;
  void WriteRow(Region& region) noexcept;

  enum class Outcome { kInserted, kFull, kReplicas, kStale, kInvalid };
  Outcome PublishOne(Region& region, const PublishRecord& record, std::uint32_t now_s);
  bool DropStaleReplica(const BlockKey& key);
  void DropReplica(const BlockKey& key);
  bool MakeRoom(const Region& publisher);
  bool IsStale(const IndexEntry& entry) const noexcept;
  bool IsPinned(const IndexEntry& entry) const noexcept;
  void EraseEntry(std::uint64_t slot, std::atomic<std::uint64_t>& counter) noexcept;
  void WriteEntryCount() noexcept;

  const std::string name_;
  const Config& config_;
  DescriptorQuota& descriptors_;
  RegistrySegment segment_;
  BlockIndexWriter index_;
  ModelTable models_;
  std::vector<std::unique_ptr<Region>> regions_;   // by row; null: free
  std::map<ClientId, Account> accounts_;           // of clients that have regions, leaving ones included
  std::set<std::uint32_t> leaving_;                // rows
  std::map<FileId, std::uint32_t> row_of_memory_;  // of serving regions
  std::uint32_t look_hand_ = 0;                    // row whose memory is looked at next
  std::uint32_t live_regions_ = 0, orphans_ = 0;
  std::uint32_t next_row_ = 0;  // where the search for a free row begins: rows rest before they are reused
  std::uint32_t next_region_epoch_ = 1;
  ClockEviction eviction_;
  std::uint64_t sweep_hand_ = 0;
  unsigned sweep_idle_ = 0;  // whole rounds in which the sweeper found next to nothing
  std::uint64_t swept_in_round_ = 0;
  const std::uint64_t started_ns_ = MonotonicNs();
};

}  // namespace kvm::daemon
