// An import under way. It keeps the memory that it reads and writes mapped until the copy has
// ended, and then makes its result from the backend's status of each block.
#pragma once

#include <chrono>
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

// The objects that must live as long as the copy runs.
struct ImportKeep {
  Match match;
  std::shared_ptr<Region::Impl> destination;
  std::vector<std::shared_ptr<const CopyPlan>> plans;
  std::vector<std::shared_ptr<const PeerPayload>> payloads;
};

struct ImportTicket::Impl {
  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl();

  const OwnerProcess process;
  const std::chrono::steady_clock::time_point begun = std::chrono::steady_clock::now();
  // Parts of the import's client.
  std::shared_ptr<AtomicStats> stats;
  std::shared_ptr<HostCacheUses> host_cache_uses;  // null: the import is no use
  std::shared_ptr<ImportKeep> keep;
  std::unique_ptr<ImportJob> job;  // null: nothing could be copied
  std::vector<std::uint32_t> blocks;
  std::size_t mapped = 0;  // leading blocks the job covers
  std::uint64_t block_bytes = 0;
  // Of the leading blocks, those that are compared; empty: none is
  std::vector<std::optional<std::uint64_t>> checksums;
  ImportResult result;
  bool finished = false;

  // Makes the result, at the first call.
  void Finish();
  // Makes the result in a forked child, which has no part in the import.
  void FailInChild();

 private:
  // Reduces result.valid to the blocks before the first one whose bytes differ from what was
  // published; returns the reason if there is such a block.
  std::optional<ImportFailure> Verify();
  void CountTraffic();
  void CountFailure(ImportFailure first);
};

}  // namespace kvm
