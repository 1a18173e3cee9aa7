// Domain: one isolation unit with a registry segment, models, regions and entries of its own.
//
// Called by the services of daemon/broker/ and by the host cache. It owns the segment, of which it
// is the only writer, and the parts that do the work, each with invariants of its own: Accounts
// (how much each client has), MarkTable (keys that are being computed), RegionTable (rows and
// states), OrphanRegions, EntryTable (the index) and RetainedBlocks (the blocks that a lease can
// cover). Domain itself does what concerns several of them: it adds and removes regions.
//
// Everything that a client sends arrives here parsed, and is checked here; no call can fail in a
// way that harms another client. Work that grows with a client's size (dropping its entries,
// looking for stale ones) is cut into bounded slices. Single-threaded.
//
// region.h draws the phases of a region. While a region leaves, its entries are dropped and
// importers may still have it mapped. Its row is reused only after both have ended; its epoch is
// never reused.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/registry/accounts.h"
#include "daemon/registry/entry_table.h"
#include "daemon/registry/hot_prefixes.h"
#include "daemon/registry/mark_table.h"
#include "daemon/registry/model_table.h"
#include "daemon/registry/orphan_regions.h"
#include "daemon/registry/region_table.h"
#include "daemon/registry/registry_segment.h"
#include "daemon/registry/retained_blocks.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class Domain {
 public:
  // kSystem: no memory for the segment. `descriptors` must outlive the domain. The domain has its
  // own settings (config_domains.h).
  [[nodiscard]] static Result<std::unique_ptr<Domain>> Create(const std::string& name, const Config& config, DescriptorQuota& descriptors);
  // The same in two steps, since a segment is made in slices: begins one for a domain of this name;
  // and makes the domain of a whole one.
  [[nodiscard]] static Result<RegistrySegment> BeginSegment(const std::string& name, const Config& config);
  [[nodiscard]] static std::unique_ptr<Domain> Create(const std::string& name, const Config& config, DescriptorQuota& descriptors,
                                                      RegistrySegment segment);

  const std::string& name() const noexcept { return name_; }
  const Config& config() const noexcept { return config_; }
  RegistrySegment& segment() noexcept { return segment_; }
  ModelTable& models() noexcept { return models_; }
  MarkTable& marks() noexcept { return marks_; }
  std::uint64_t epoch() const noexcept { return segment_.header().epoch; }
  const ModelSpec& SpecOf(const Region& region) const noexcept { return models_.spec(region.info.model); }
  std::uint64_t entries() const noexcept { return entries_.size(); }
  std::uint32_t live_regions() const noexcept { return regions_.live(); }
  std::uint32_t orphans() const noexcept { return regions_.orphans(); }
  std::uint64_t orphan_bytes() const noexcept { return orphans_.bytes(); }
  // Of all regions, published or not
  std::uint64_t blocks() const noexcept { return accounts_.blocks(); }
  Account AccountOf(ClientId client) const { return accounts_.Of(client); }
  // That kvmd keeps for regions and slabs
  std::uint64_t fds() const noexcept { return accounts_.fds(); }
  std::uint64_t max_fds() const noexcept { return accounts_.max_fds(); }
  bool nearly_full() const noexcept;  // few rows are left
  bool idle() const noexcept;         // no client has a region here, nor has one left behind
  bool empty() const noexcept;        // there is no region at all

  [[nodiscard]] Status CheckUserDescriptors(std::uint32_t uid, std::uint64_t more) const {
    return accounts_.CheckUserDescriptors(uid, more);
  }

  // ---- adding and removing regions

  // Checks everything that does not depend on other regions. kNotFound (model), kResourceExhausted
  // (quotas), and the errors of CheckRegion.
  [[nodiscard]] Result<std::unique_ptr<Region>> PrepareRegion(ClientId owner, kvmwire::RegionDescriptor descriptor,
                                                              std::vector<PeerFd> fds) const;
  // What RegionTable::Add and Accounts::CheckUser say.
  [[nodiscard]] Result<Region*> AddRegion(const Owner& owner, std::unique_ptr<Region> region);
  // Begins to remove a serving region: no block can be published to it any more, and Reap does the
  // rest. `asks_importers`: importers are asked to acknowledge, and the row shows kWithdrawing
  // meanwhile; otherwise the row shows kFree at once.
  void StartLeaving(Region& region, bool asks_importers) noexcept;
  void StopWaitingFor(ClientId importer) noexcept;  // it has disconnected
  // Drops up to `blocks` entries of leaving regions. Frees the rows of leaving regions that have no
  // entry left and wait for no importer. True if entries are left to drop.
  bool Reap(std::uint32_t blocks);
  // `freed` is called before a region that has left is destroyed.
  void OnFreed(std::function<void(Region&)> freed) { freed_ = std::move(freed); }

  // ---- regions: region_table.h

  Region* FindRegion(std::uint32_t row, std::uint32_t region_epoch) noexcept { return regions_.Find(row, region_epoch); }
  Region* FindServingRegion(std::uint32_t owner_uid, const std::string& name) noexcept { return regions_.FindServing(owner_uid, name); }
  std::vector<Region*> RegionsOf(ClientId owner) noexcept { return regions_.Of(owner); }
  std::vector<Region*> ServingRegionsOfModel(std::uint32_t model) noexcept { return regions_.ServingOfModel(model); }
  Region* FindDamaged(std::uint32_t most) noexcept { return regions_.FindDamaged(most); }
  void WriteRows() { regions_.WriteChanged(); }
  template <class Visit>
  void ForEachRegion(Visit&& visit) {
    for (const auto& region : regions_.rows()) {
      if (region) visit(*region);
    }
  }

  // ---- orphans: orphan_regions.h

  std::vector<Region*> Orphans() noexcept { return orphans_.All(); }
  std::vector<Region*> OrphansInTheWay(const Region& region, std::uint32_t owner_uid) noexcept {
    return orphans_.InTheWayOf(region, owner_uid);
  }
  std::vector<Region*> OrphansInTheWay(const kvmwire::RegionDescriptor& announced, std::uint32_t owner_uid) {
    return orphans_.InTheWayOf(announced, owner_uid);
  }
  // The owner of a live region has died or disconnected.
  void MakeOrphan(Region& region, Orphan orphan) noexcept {
    region.orphan = std::move(orphan);
    regions_.Enter(region, RegionPhase::kOrphan);
  }
  [[nodiscard]] Status TakeOver(Region& region, const Owner& owner) { return orphans_.TakeOver(region, owner); }

  // ---- entries: entry_table.h

  using Publishing = EntryTable::Publishing;
  bool Publish(ClientId client, const kvmwire::Publish& publish, Publishing& progress, const WorkBudget& budget) {
    return entries_.Publish(client, publish, progress, budget);
  }
  // The whole message.
  kvmwire::PublishAck Publish(ClientId client, const kvmwire::Publish& publish);
  bool Restore(Region& region, const IndexEntry& entry) { return entries_.Restore(region, entry); }
  bool Retract(ClientId client, const kvmwire::Retract& retract, int& next, const WorkBudget& budget) {
    return entries_.Retract(client, retract, next, budget);
  }
  void Sweep(std::uint32_t slots) { entries_.Sweep(slots); }
  bool PublishCached(Region& region, const PublishRecord& record) { return entries_.PublishCached(region, record); }
  void EraseCached(Region& region, std::uint32_t block) { entries_.EraseCached(region, block); }
  // Precondition: block < block_count.
  IndexEntry EntryOf(const Region& region, std::uint32_t block) const noexcept { return entries_.Of(region, block); }
  using RecordList = EntryTable::RecordList;
  [[nodiscard]] static Result<RecordList> BeginRecords(const Region& region) { return EntryTable::BeginRecords(region); }
  bool GoOnRecords(const Region& region, RecordList& list, const WorkBudget& budget) const {
    return entries_.GoOnRecords(region, list, budget);
  }

  // ---- leases: retained_blocks.h

  using RetainedBlock = daemon::RetainedBlock;
  [[nodiscard]] Result<RetainedBlock> FindRetained(const kvmwire::LeaseSource& source) { return retained_.Find(source); }
  // For a region that FindRetained has returned; see Region::Pin and Region::Unpin.
  bool Pin(Region& region, std::uint32_t block) { return region.Pin(block); }
  void Unpin(Region& region, std::uint32_t block) noexcept { region.Unpin(block); }
  std::uint32_t leased_orphans() const noexcept { return retained_.leased_orphans(); }

  // The broker writes these: how many clients are connected, and what clients have reported
  // (client_totals.h).
  std::uint32_t clients = 0;
  kvmwire::StatsReport client_totals;
  // What clients have imported most (hot_prefixes.h)
  HotPrefixes hot;

 private:
  Domain(std::string name, Config config, DescriptorQuota& descriptors, RegistrySegment segment);

  const std::string name_;
  const Config config_;
  RegistrySegment segment_;
  ModelTable models_;
  MarkTable marks_;
  Accounts accounts_;
  RegionTable regions_;
  EntryTable entries_;
  OrphanRegions orphans_;
  RetainedBlocks retained_;
  std::set<std::uint32_t> leaving_;  // rows
  std::function<void(Region&)> freed_;
};

}  // namespace kvm::daemon
