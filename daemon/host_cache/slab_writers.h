// The clients that may write slabs: who they are while they are connected, and for as long as their
// processes might still write.
//
// Called by HostCache and PlaceFinder, and by HostCacheRestore for the writers of an earlier kvmd's
// slabs. It owns the list of writers; a slab that a writer may write shares the ownership.
//
// Invariants:
//   - A slot is granted to one writer at a time, and again only after that writer has answered for
//     it or its process has ended: a late copy can't land in somebody else's block.
//   - A process that comes back over a new connection is the same writer, and gets its slabs again.
// Single-threaded.
#pragma once

#include <cstdint>
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

  // The writer that a client is, made with its first offer.
  std::shared_ptr<SlabWriter> Of(const Offerer& offerer, Domain& domain);
  SlabWriter* Find(ClientId client) const;  // null: it has offered nothing
  // The client has left. `process`: asked whether it can still write.
  void Leave(ClientId client, std::shared_ptr<WatchedProcess> process);
  // The writer of a slab that an earlier kvmd has left, whose process still runs.
  std::shared_ptr<SlabWriter> OfRestored(Domain& domain, const kvmwire::StoredSlab& stored, const std::shared_ptr<WatchedProcess>& process);

  // Grants whose time is over are void; their slots stay nobody's.
  void ExpireGrants(SlabWriter& writer, SteadyTime now);
  // The same of all, and processes that have ended leave their slots.
  void Tick(SteadyTime now);

  // How many clients have slabs, `writer` counted in any case.
  std::uint64_t SharersWith(const SlabWriter& writer) const;

 private:
  std::shared_ptr<SlabWriter> Resume(const Offerer& offerer, Domain& domain);
  void Departed(SlabWriter& writer);

  SlabPool& pool_;
  HostCacheEvents& host_;
  HostCacheCounters& counters_;
  std::map<ClientId, std::shared_ptr<SlabWriter>> writers_;
  std::vector<std::shared_ptr<SlabWriter>> departed_;  // whose processes may still write
};

}  // namespace kvm::daemon
