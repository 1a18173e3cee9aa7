// Lessor: which client's lease keeps which blocks from being given up, and until when.
//
// A lease is the leading blocks of a match, each where kvmd itself keeps it: a slot of the host
// cache, or a block in the region of a process that has ended. The lessor grants it, renews it, and
// revokes it when it is released, when its time is over and when its client's connection ends; what
// is given up nevertheless (a region's next owner takes it) is cut off, with all behind it.
// LeaseService calls it for clients' messages.
//
// Invariant: each block of a lease is counted once in its region (Domain::Pin), until it is cut off
// or its region is gone. Nobody else pins. Bounded by what the settings say of leases, blocks and
// bytes of a client, a domain and all; a block that two leases hold counts for both.
// Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "daemon/registry/domain.h"
#include "daemon/system/config.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

using LeaseId = std::uint64_t;

struct LeasedBlock {
  std::uint32_t row = 0, region_epoch = 0, block = 0;
  bool cached = false;  // in the host cache
  std::uint64_t bytes = 0;
};

struct Lease {
  LeaseId id = 0;
  ClientId client = 0;
  Domain* domain = nullptr;
  std::uint32_t model = 0;          // row of the model table
  std::vector<LeasedBlock> blocks;  // in the order of the match
  SteadyTime deadline;
};

class Lessor {
 public:
  struct Usage {
    std::uint32_t leases = 0;
    std::uint64_t blocks = 0, bytes = 0, cache_bytes = 0;
  };

  // `config` outlives the lessor.
  explicit Lessor(const Config& config) : config_(config) {}

  // A lease that holds nothing yet. kInvalidArgument: no time, or more than --max-lease-ttl-s.
  // kResourceExhausted: --max-leases-per-client.
  [[nodiscard]] Result<Lease*> Grant(ClientId client, Domain& domain, std::uint32_t ttl_ms);
  // Of this client. kNotFound.
  [[nodiscard]] Result<Lease*> Find(ClientId client, LeaseId id);
  // One more block. What Domain::FindRetained says, or kResourceExhausted: a limit, the option
  // named.
  [[nodiscard]] Status Add(Lease& lease, const kvmwire::LeaseSource& source);
  // From now on. kInvalidArgument: as of Grant.
  [[nodiscard]] Status Renew(Lease& lease, std::uint32_t ttl_ms);
  // Lets go of all its blocks; the lease is gone.
  void Revoke(Lease& lease) { Cut(lease, 0); }
  void RevokeAllOf(ClientId client);
  // Revokes those whose time is over.
  void Expire(SteadyTime now);
  // A region goes, or gets a next owner: leases lose what they hold of it and what comes after.
  // Each is shown before it is cut, with the number of blocks that it keeps. How many they were.
  std::uint32_t CutOff(const Domain& domain, const Region& region, const std::function<void(const Lease&, std::size_t)>& losing);

  const std::map<LeaseId, std::unique_ptr<Lease>>& all() const noexcept { return leases_; }
  Usage UsageOf(ClientId client) const;
  Usage UsageOf(const Domain& domain) const;

 private:
  Status CheckTtl(std::uint32_t ttl_ms) const;
  Status CheckLimits(const Lease& lease, const Region& region) const;
  void Cut(Lease& lease, std::size_t blocks);
  void Count(const Lease& lease, const LeasedBlock& block, bool held);

  const Config& config_;
  std::map<LeaseId, std::unique_ptr<Lease>> leases_;
  std::set<std::pair<SteadyTime, LeaseId>> by_deadline_;
  std::map<ClientId, Usage> of_client_;
  std::map<const Domain*, Usage> of_domain_;
  Usage total_;
  LeaseId next_ = 1;
};

}  // namespace kvm::daemon
