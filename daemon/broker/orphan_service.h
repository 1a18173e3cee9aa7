// OrphanService: regions whose owner has gone. They are kept, given back to the process that was
// only away, given to the one that was restarted, or given up.
//
// Broker hands it AllocateMemory, AdoptRegion and Reclaim and the ticks; RegionService asks it when
// a region is registered and when an owner leaves. OrphanPolicy names what is to go. Owns who waits
// for memory to come back. Single-threaded.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "daemon/broker/client_table.h"
#include "daemon/broker/domain_table.h"
#include "daemon/broker/lease_service.h"
#include "daemon/broker/orphan_policy.h"
#include "daemon/broker/persistence.h"
#include "daemon/broker/region_announcer.h"
#include "daemon/broker/restorer.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class OrphanService {
 public:
  // All outlive the service.
  OrphanService(const Config& config, const ClientTable& clients, const DomainTable& domains, LeaseService& leases,
                Persistence& persistence, RegionAnnouncer& announcer, const Restorer& restorer)
      : policy_(config),
        clients_(clients),
        domains_(domains),
        leases_(leases),
        persistence_(persistence),
        announcer_(announcer),
        restorer_(restorer) {}

  // ---- messages

  void AllocateMemory(Client& client, const kvmwire::ClientMessage& message);
  void Adopt(Client& client, const kvmwire::ClientMessage& message);
  void Reclaim(Client& client, const kvmwire::ClientMessage& message);

  // ---- for RegionService

  // A live region's owner has gone. True: the region is kept without it.
  bool Keep(Domain& domain, Region& region, const std::shared_ptr<WatchedProcess>& process);
  // The region that a process which was away comes back for; null: there is none. What
  // Domain::TakeOver says.
  Result<Region*> Resume(Client& client, const kvmwire::RegionDescriptor& descriptor, const std::vector<UniqueFd>& fds);
  // Orphans that stand in the way of a region that is about to be added go.
  void MakeWayFor(Domain& domain, const Region& region, std::uint32_t owner_uid);
  void GiveUp(Domain& domain, Region& region, const char* why, bool wait_for_importers = false);

  // ---- time

  void Expire(SteadyTime now);
  // Answers those whose regions are gone, and those whose deadline has passed.
  void AnswerWaiting(SteadyTime now);
  SteadyTime next_deadline() const noexcept;
  void Leave(const Client& client);

 private:
  // Somebody who waits for orphans to be gone.
  struct Waiting {
    std::vector<RegionRef> regions;
    ClientId client = 0;
    std::uint64_t request_id = 0;
    SteadyTime deadline;
    kvmwire::ReclaimReply reply;
    std::optional<kvmwire::AllocateMemory> then;  // what the memory is asked back for
  };

  static void ReplyMemory(Client& client, std::uint64_t request_id, const kvmwire::AllocateMemory& request,
                          const kvmwire::ReclaimReply* reclaimed);
  // The orphan that a client may adopt now. kNotFound, kAlreadyExists, kUnsupported, kUnavailable
  // (not yet), and what CheckExpected says.
  Result<Region*> FindAdoptable(const Client& client, const kvmwire::RegionDescriptor& expected, const std::string& what);
  // The region is the client's, and the store knows of it. `list`: of its records.
  void AnswerAdopter(Client& client, std::uint64_t request_id, Region& region, std::uint64_t records, int list);
  void GiveUpFor(Waiting& waiting, Domain& domain, Region& region, const char* why);
  void MakeRoomForRegions(Domain& domain);
  bool Answer(Waiting& waiting, SteadyTime now);

  const OrphanPolicy policy_;
  const ClientTable& clients_;
  const DomainTable& domains_;
  LeaseService& leases_;
  Persistence& persistence_;
  RegionAnnouncer& announcer_;
  const Restorer& restorer_;
  std::vector<Waiting> waiting_;
};

}  // namespace kvm::daemon
