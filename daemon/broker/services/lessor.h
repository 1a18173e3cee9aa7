// Lessor: the leases of all clients: the blocks that each keeps from eviction, and until when.
//
// A lease is the leading blocks of a match, each where kvmd itself keeps it: a slot of the host
// cache, or a block in the region of a process that has ended. The lessor grants a lease, renews
// it, and revokes it when it is released, when its time is over and when its client's connection
// ends. If a region of its blocks ends or gets another owner, the lease loses those blocks and all
// behind them. LeaseService calls it for clients' messages.
//
// Many leases may have blocks in one region, or end at one moment, and a lease may have many
// blocks. So what they lose is noted first, and taken off them and unpinned in slices (Work).
//
// Invariant: each block of a lease is counted once in its region (Domain::Pin), until it is cut off
// or its region is gone. No other code pins blocks. The settings limit leases, blocks and bytes of
// a client, of a domain and in all; a block that two leases cover counts twice. Single-threaded.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "daemon/registry/domain.h"
#include "daemon/system/config.h"
#include "daemon/system/work_meter.h"
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
  std::uint32_t uid = 0;  // the client's
  Domain* domain = nullptr;
  std::uint32_t model = 0;          // row of the model table
  std::vector<LeasedBlock> blocks;  // in the order of the match
  // Of each region (row, epoch), the first of these
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::size_t> first_of;
  SteadyTime deadline;
};

// A region that has ended or has got another owner, and the leases that are to lose its blocks.
struct RegionCut {
  const Domain* domain = nullptr;
  std::uint32_t row = 0, region_epoch = 0;
  std::string region;  // its name
  const char* why = "";
  std::set<LeaseId> leases;
};

class Lessor {
 public:
  // Called with a lease before it loses blocks, and with the number that it keeps.
  using Losing = std::function<void(const Lease&, const RegionCut&, std::size_t)>;
  struct Usage {
    std::uint32_t leases = 0;
    std::uint64_t blocks = 0, bytes = 0, cache_bytes = 0;
  };

  // `config` outlives the lessor.
  Lessor(const Config& config, Losing losing) : config_(config), losing_(std::move(losing)) {}

  // Makes a lease without blocks. kInvalidArgument: `ttl_ms` is 0, or more than --max-lease-ttl-s.
  // kResourceExhausted: --max-leases-per-client, --max-leases-per-user.
  [[nodiscard]] Result<Lease*> Grant(ClientId client, std::uint32_t uid, Domain& domain, std::uint32_t ttl_ms);
  // Finds a lease of this client. kNotFound.
  [[nodiscard]] Result<Lease*> Find(ClientId client, LeaseId id);
  // Adds a block. Errors: those of Domain::FindRetained, and kResourceExhausted: a limit, the
  // option named.
  [[nodiscard]] Status Add(Lease& lease, const kvmwire::LeaseSource& source);
  // Makes the lease end `ttl_ms` from now. kInvalidArgument: see Grant.
  [[nodiscard]] Status Renew(Lease& lease, std::uint32_t ttl_ms);
  // Removes the lease. Its blocks stay pinned and counted until Work has come to them.
  void Revoke(Lease& lease) { Cut(lease, 0); }
  // The client has gone. Its leases end when Work comes to them.
  void RevokeAllOf(ClientId client);
  // Shortens the leases that CutOff has named, revokes those of RevokeAllOf and Expire, and unpins
  // blocks that leases have lost, until the budget is used up. True: there are more.
  bool Work(const WorkBudget& budget);
  // Those whose time is over end when Work comes to them.
  void Expire(SteadyTime now) { now_ = now; }
  // To be called before a region ends or gets another owner: leases lose their blocks in it, and
  // all behind them, when Work comes to them. Blocks that a lease gets later are not meant. `why`
  // outlives the lessor. Returns the number of these leases.
  std::uint32_t CutOff(const Domain& domain, const Region& region, const char* why);

  const std::map<LeaseId, std::unique_ptr<Lease>>& all() const noexcept { return leases_; }
  // Whether leases are still to lose blocks.
  bool cutting() const noexcept { return !cuts_.empty(); }
  Usage UsageOf(ClientId client) const;
  Usage UsageOf(const Domain& domain) const;

 private:
  using RegionKey = std::tuple<const Domain*, std::uint32_t, std::uint32_t>;  // row, epoch

  bool CutSome(const WorkBudget& budget);
  bool RevokeSome(const WorkBudget& budget);
  Status CheckTtl(std::uint32_t ttl_ms) const;
  Status CheckLimits(const Lease& lease, const Region& region) const;
  void Cut(Lease& lease, std::size_t blocks);
  void Count(const Lease& lease, const LeasedBlock& block, bool held);
  void DropUnused(ClientId client, const Domain* domain);

  const Config& config_;
  const Losing losing_;
  std::map<LeaseId, std::unique_ptr<Lease>> leases_;
  std::set<std::pair<ClientId, LeaseId>> by_client_;
  std::map<RegionKey, std::set<LeaseId>> by_region_;  // that have blocks in it
  std::deque<RegionCut> cuts_;                        // what Work has to take off leases
  std::deque<Lease> lost_;                            // what leases have lost and Work has to unpin
  std::set<std::pair<SteadyTime, LeaseId>> by_deadline_;
  SteadyTime now_ = SteadyTime::min();  // of the last Expire
  std::deque<ClientId> gone_;           // clients that Work has to revoke the leases of
  std::map<ClientId, Usage> of_client_;
  std::map<const Domain*, Usage> of_domain_;
  std::map<std::uint32_t, std::uint32_t> of_user_;  // how many leases
  Usage total_;
  LeaseId next_ = 1;
};

}  // namespace kvm::daemon
