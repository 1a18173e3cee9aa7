// An import under way: what it reads and writes stays where it is until the copy has ended, then
// its result is made of what the backend says of each block.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "client/connection/owner_process.h"
#include "client/offload/host_cache_uses.h"
#include "client/region/region_impl.h"
#include "client/stats/atomic_stats.h"
#include "kvclient/import.h"
#include "kvclient/match.h"

namespace kvm {

// What one import needs to stay where it is.
struct ImportKeep {
  Match match;
  std::shared_ptr<Region::Impl> destination;
  std::vector<std::shared_ptr<const CopyPlan>> plans;
  std::vector<std::shared_ptr<const PeerPayload>> payloads;
};

struct ImportTicket::Impl {
  const OwnerProcess process;
  // Its client's, which they keep alive.
  std::shared_ptr<AtomicStats> stats;
  std::shared_ptr<HostCacheUses> host_cache_uses;
  std::shared_ptr<ImportKeep> keep;
  std::unique_ptr<ImportJob> job;  // null: nothing could be copied
  std::vector<std::uint32_t> blocks;
  std::size_t mapped = 0;  // leading blocks the job covers
  std::uint64_t block_bytes = 0;
  std::vector<std::optional<std::uint64_t>> checksums;  // of the leading blocks; empty: nothing is compared
  ImportResult result;
  bool finished = false;

  // Makes the result, once.
  void Finish();
  // The result in a forked child: nothing of the import is that process's.
  void FailInChild();

 private:
  // Cuts result.valid at the first block whose bytes are not what was published; the reason, if
  // there is one.
  std::optional<ImportFailure> Verify();
};

}  // namespace kvm
