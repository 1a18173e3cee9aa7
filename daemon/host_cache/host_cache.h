// The host cache: copies of blocks in kvmd's host memory. They outlive the workers that computed
// the blocks, and any worker of the domain may import them.
//
// Called by the services of daemon/broker/. The cache consists of slabs (slab.h). A worker offers
// blocks, is granted slots in slabs that only it may write, copies the blocks, and reports the
// copies as complete. kvmd copies nothing. HostCache itself answers offers, completed stores and
// reports of use, and decides which blocks are admitted. It owns the other parts, each with
// invariants of its own: SlabPool (slabs and their blocks), SlabWriters (which client may write
// which slab), SlabAllocator (new memory), SlabQuota (limits of memory), PlaceFinder (the slot for
// a block, and the block that makes room) and HostCacheRestore (slabs of an earlier kvmd).
//
// Invariant: what a client says of a slot counts only while that slot is granted to it with the
// generation that the client names. Single-threaded. What clients send arrives here parsed but not
// checked; it is checked here.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "daemon/host_cache/host_cache_counters.h"
#include "daemon/host_cache/host_cache_events.h"
#include "daemon/host_cache/host_cache_restore.h"
#include "daemon/host_cache/host_cache_size.h"
#include "daemon/host_cache/place_finder.h"
#include "daemon/host_cache/seen_keys.h"
#include "daemon/host_cache/slab.h"
#include "daemon/host_cache/slab_allocator.h"
#include "daemon/host_cache/slab_pool.h"
#include "daemon/host_cache/slab_quota.h"
#include "daemon/host_cache/slab_writers.h"
#include "daemon/system/config.h"
#include "daemon/system/work_meter.h"

namespace kvm::daemon {

class HostCache {
 public:
  using Offerer = daemon::Offerer;
  using Counters = HostCacheCounters::Counters;  // of one domain, cumulative
  using Usage = HostCacheUsage;

  struct Grant {
    std::uint32_t record = 0;
    Slab* slab = nullptr;
    std::uint32_t slot = 0;
    Generation write = 0;
  };
  // What became of an offer. Records from `decided` on wait for memory that is being allocated or
  // freed, or for their client's next turn: it offers them again.
  struct Decision {
    std::size_t decided = 0;
    std::vector<Grant> grants;
    std::vector<std::uint32_t> present;  // records
    std::uint32_t not_admitted = 0, stale = 0, full = 0;
    std::string reason;  // why there was no room for the `full` ones
  };

  // `config.host_cache_bytes` is not 0. All outlive the cache.
  HostCache(const Config& config, HostCacheEvents& host, HugePageMaker& huge_pages, MemoryFreer& freer);

  // ---- clients

  // `source`: a live region of the client's. `asked`: admission is not in question. An offer of
  // which the first records take a slice of work is decided as far as that.
  Decision Offer(const Offerer& offerer, Domain& domain, Region& source, std::span<const PublishRecord> records, bool asked);
  // How far a HostCacheUse has been worked on.
  struct Using {
    int next = 0;
    // Ends of chains that the policy has been told: region, its epoch, slot
    std::set<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>> told;
  };
  // Both go on with what the message names from `next` on, until the budget is used up. True:
  // nothing is left to do.
  bool Done(ClientId client, Domain& domain, const kvmwire::CompleteStore& done, int& next, const WorkBudget& budget);
  bool Used(Domain& domain, const kvmwire::HostCacheUse& use, Using& progress, const WorkBudget& budget);
  // Which blocks an Evict is about.
  struct Filter {
    bool Matches(const SlabClass& group) const {
      return &group.domain == &domain && (fingerprint.empty() || group.fingerprint == fingerprint);
    }

    Domain& domain;
    const std::string& fingerprint;  // of the model; empty: of any
  };
  // How far an Evict has been worked on in one domain.
  struct Evicting {
    std::size_t key = 0;  // the next one of `keys`
    // Without keys: the slabs that are left (row, its epoch), of which the last one is worked on,
    // and its next slot
    bool listed = false;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> slabs;
    std::uint32_t slot = 0;
    std::uint64_t blocks = 0, bytes = 0, leased = 0, being_stored = 0;
  };
  // Drops stored blocks that the filter matches and no lease covers; only `keys` if there are any.
  // Goes on as Done does.
  bool Evict(const Filter& filter, std::span<const BlockKey> keys, Evicting& progress, const WorkBudget& budget);
  void Leave(ClientId client, std::shared_ptr<WatchedProcess> process) { writers_.Leave(client, std::move(process)); }

  // ---- memory

  void Tick(SteadyTime now);
  // A slice of closing slabs and of allocating memory; true if there is more to do.
  bool Work() {
    bool more = writers_.Work(WorkBudget());
    more = pool_.Work(WorkBudget()) || more;
    return allocator_.Work(now_) || more;
  }
  // Whether memory has been allocated or freed since the last call, so that waiting offers can be
  // tried again.
  bool TakeProgress() noexcept { return pool_.TakeProgress(); }
  // Drops slabs of the region's model and shard whose blocks have another size than the region's.
  void DropMismatched(Domain& domain, const Region& region) { pool_.DropMismatched(domain, region); }
  // Drops a slab whose memory has been damaged, with all its blocks.
  void GiveUp(Region& region) { pool_.GiveUp(*static_cast<Slab*>(region.filler)); }
  // Drops what it has for the domain, until the budget is used up. True: nothing is left.
  bool GiveUpAll(const Domain& domain, const WorkBudget& budget);
  // Called before the domain is destroyed, of which nothing is left.
  void Forget(const Domain& domain);

  // ---- what an earlier kvmd has left: host_cache_restore.h

  [[nodiscard]] Status Restore(Domain& domain, Region& region, const kvmwire::StoredSlab& stored,
                               const std::shared_ptr<WatchedProcess>& process) {
    return restore_.Restore(domain, region, stored, process, now_);
  }
  bool RestoreEntry(Region& region, const IndexEntry& entry) { return restore_.RestoreEntry(region, entry); }
  void UseRestored() { restore_.UseRestored(now_); }
  void FinishRestore(Region& region) { restore_.FinishRestore(region); }
  const SlabWriter* Describe(const Region& region, kvmwire::StoredSlab& stored) const { return HostCacheRestore::Describe(region, stored); }

  // ---- what operators see

  Counters CountersOf(const Domain& domain) const { return counters_.Of(domain); }
  // null: of all domains
  Usage UsageOf(const Domain* domain) const { return quota_.Usage(domain); }
  std::uint64_t BytesOf(ClientId client) const;
  std::vector<Slab*> SlabsOf(ClientId client) const;  // that it may write
  std::uint64_t max_bytes() const noexcept { return config_.host_cache_bytes; }
  std::uint64_t slab_bytes() const noexcept { return pool_.slab_bytes(); }

 private:
  bool EvictKeys(const Filter& filter, std::span<const BlockKey> keys, Evicting& progress, const WorkBudget& budget);
  bool EvictSlabs(const Filter& filter, Evicting& progress, const WorkBudget& budget);
  void EvictSlot(Slab& slab, policy::Slot slot, Evicting& progress);
  bool Admitted(const Domain& domain, const BlockKey& key, bool asked);

  const Config& config_;
  MemoryFreer& freer_;
  HostCacheCounters counters_;
  SlabPool pool_;
  SlabWriters writers_;
  SlabAllocator allocator_;
  SlabQuota quota_;
  PlaceFinder places_;
  HostCacheRestore restore_;
  std::map<const Domain*, SeenKeys> seen_;
  SteadyTime now_ = std::chrono::steady_clock::now();  // of the last Tick
};

}  // namespace kvm::daemon
