// OrphanService: regions whose owner has gone. It keeps them, returns them to a process that
// reconnects, gives them to a restarted process, or frees them.
//
// Broker passes it AllocateMemory, AdoptRegion, Reclaim and the ticks; RegionService calls it when
// a region is registered and when an owner leaves. OrphanPolicy names the regions to free. It owns
// the list of clients that wait for memory to be freed. Single-threaded.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/services/lease_service.h"
#include "daemon/broker/services/orphan_policy.h"
#include "daemon/broker/services/region_announcer.h"
#include "daemon/broker/state/domain_table.h"
#include "daemon/broker/state/persistence.h"
#include "daemon/broker/state/restorer.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class OrphanService {
 public:
  // All outlive the service. `closer`: of clients' memory; null: it is closed at once.
  OrphanService(const Config& config, const ClientTable& clients, const DomainTable& domains, LeaseService& leases,
                Persistence& persistence, RegionAnnouncer& announcer, const Restorer& restorer, const DescriptorCloser* closer)
      : config_(config),
        clients_(clients),
        domains_(domains),
        leases_(leases),
        persistence_(persistence),
        announcer_(announcer),
        restorer_(restorer),
        closer_(closer) {}

  // ---- messages

  void AllocateMemory(Client& client, const kvmwire::ClientMessage& message);
  void Adopt(Client& client, const kvmwire::ClientMessage& message);
  void Reclaim(Client& client, const kvmwire::ClientMessage& message);

  // ---- for RegionService

  // Called when a live region's owner has gone. True if the region is kept.
  bool Keep(Domain& domain, Region& region, const std::shared_ptr<WatchedProcess>& process);
  // The orphan that belongs to a process which registers it again after a reconnect; null if there
  // is none. Errors: those of Domain::TakeOver.
  Result<Region*> Resume(Client& client, const kvmwire::RegionDescriptor& descriptor, const std::vector<PeerFd>& fds);
  // Frees orphans that conflict with a region that is about to be added.
  void MakeWayFor(Domain& domain, const Region& region, std::uint32_t owner_uid);
  void GiveUp(Domain& domain, Region& region, const char* why, bool wait_for_importers = false);

  // ---- time

  void Expire(SteadyTime now);
  // Answers clients whose orphans are gone, and clients whose deadline has passed: a slice of them.
  // True: there are more.
  bool AnswerWaiting(SteadyTime now);
  SteadyTime next_deadline() const noexcept;
  void Leave(const Client& client);

 private:
  // A client that waits for orphans to be gone, and their memory to be free.
  struct Waiting {
    std::vector<RegionRef> regions;
    std::set<std::uint32_t> owners;  // of these: users
    ClientId client = 0;
    std::uint64_t request_id = 0;
    SteadyTime deadline;
    kvmwire::ReclaimReply reply;
    std::optional<kvmwire::AllocateMemory> then;  // the request for which the memory is freed
  };

  void ReplyMemory(Client& client, std::uint64_t request_id, const kvmwire::AllocateMemory& request,
                   const kvmwire::ReclaimReply* reclaimed);
  // The orphan that a client may adopt now. kNotFound, kAlreadyExists, kUnsupported, kUnavailable
  // (not yet), and what CheckExpected says.
  Result<Region*> FindAdoptable(const Client& client, const kvmwire::RegionDescriptor& expected, const std::string& what);
  // The list of the region's records is complete: gives the region to the client, if it may still
  // have it.
  void TakeOver(Client& client, std::uint64_t request_id, const kvmwire::RegionDescriptor& expected, const RegionRef& region,
                const std::shared_ptr<Domain::RecordList>& list);
  // The region is the client's, and the store knows of it. `list`: of its records.
  void AnswerAdopter(Client& client, std::uint64_t request_id, Region& region, std::uint64_t records, int list);
  void GiveUpFor(Waiting& waiting, Domain& domain, Region& region, const char* why);
  void MakeRoomForRegions(Domain& domain);
  bool Answer(Waiting& waiting, SteadyTime now);
  bool Freeing(const Waiting& waiting) const;

  const Config& config_;
  const ClientTable& clients_;
  const DomainTable& domains_;
  LeaseService& leases_;
  Persistence& persistence_;
  RegionAnnouncer& announcer_;
  const Restorer& restorer_;
  const DescriptorCloser* const closer_;
  std::vector<Waiting> waiting_;
};

}  // namespace kvm::daemon
