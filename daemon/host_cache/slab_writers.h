// SlabWriters: the clients that may write slabs, while they are connected and for as long as their
// processes can still write.
//
// Called by HostCache and PlaceFinder, and by HostCacheRestore for the writers of an earlier kvmd's
// slabs. It owns the list of writers; a slab that a writer may write shares the ownership.
//
// Invariants:
//   - A slot is granted to one writer at a time, and again only after that writer has answered for
//     it or its process has ended, so that a late copy can't overwrite another writer's block.
//   - A process that reconnects is the same writer as before, and gets its slabs again.
// Single-threaded.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "daemon/host_cache/host_cache_counters.h"
#include "daemon/host_cache/host_cache_events.h"
#include "daemon/host_cache/slab_pool.h"
#include "daemon/host_cache/slab_writer.h"

namespace kvm::daemon {

class SlabWriters {
 public:
  // All outlive the writers.
  SlabWriters(SlabPool& pool, HostCacheEvents& host, HostCacheCounters& counters) : pool_(pool), host_(host), counters_(counters) {}

  // Returns the writer for a client, and makes it at the client's first offer.
  std::shared_ptr<SlabWriter> Of(const Offerer& offerer, Domain& domain);
  SlabWriter* Find(ClientId client) const;  // null if the client has offered nothing
  // Called when the client has disconnected. `process`: the client's, which can write until it
  // ends.
  void Leave(ClientId client, std::shared_ptr<WatchedProcess> process);
  // Returns the writer of a slab of an earlier kvmd; the writer's process still runs.
  std::shared_ptr<SlabWriter> OfRestored(Domain& domain, const kvmwire::StoredSlab& stored, const std::shared_ptr<WatchedProcess>& process);

  // Expires grants whose deadline has passed; no client is granted their slots until the writer has
  // answered.
  void ExpireGrants(SlabWriter& writer, SteadyTime now);
  // Does the same for all writers, and begins to free the slots of writers whose processes have
  // ended.
  void Tick(SteadyTime now);
  // Looks at the slots of writers that have left, have ended or are back, until the budget is used
  // up. True: there are more.
  bool Work(const WorkBudget& budget);

  // The part of `bytes` that a writer may have before others lack it: users that have slabs share
  // alike, and so do the clients of a user. `asking` counts in any case.
  std::uint64_t ShareOf(const SlabWriter& writer, const SlabWriter& asking, std::uint64_t bytes) const;

 private:
  std::shared_ptr<SlabWriter> Resume(const Offerer& offerer, Domain& domain);
  void Clear(const std::shared_ptr<SlabWriter>& writer);
  bool ClearSome(const SlabWriter& writer, const WorkBudget& budget);

  SlabPool& pool_;
  HostCacheEvents& host_;
  HostCacheCounters& counters_;
  std::map<ClientId, std::shared_ptr<SlabWriter>> writers_;
  // Disconnected ones whose processes may still write
  std::vector<std::shared_ptr<SlabWriter>> departed_;
  std::deque<std::shared_ptr<SlabWriter>> clearing_;
};

}  // namespace kvm::daemon
