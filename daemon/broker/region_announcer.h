// RegionAnnouncer: which clients are told of a region, and whose acknowledgement its end waits for.
//
// The services that add regions and give them up call it (RegionService, OrphanService,
// OffloadService); it calls none of them. A region is announced to every client of its domain that
// has declared its model; a client takes announcements one after the other (announcements.h).
// Withdrawing one tells all that were told of it; until they have let go of its memory, or a
// deadline has passed, somebody may wait. Owns who waits. Single-threaded.
#pragma once

#include <functional>
#include <set>
#include <vector>

#include "daemon/broker/client_table.h"
#include "daemon/broker/domain_table.h"
#include "daemon/broker/lease_service.h"
#include "daemon/broker/persistence.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class RegionAnnouncer {
 public:
  // `work_to_do` is called when a region may have become free to reap. All outlive the announcer.
  RegionAnnouncer(const Config& config, const std::function<void()>& work_to_do, ClientTable& clients, const DomainTable& domains,
                  LeaseService& leases, Persistence& persistence)
      : config_(config), work_to_do_(work_to_do), clients_(clients), domains_(domains), leases_(leases), persistence_(persistence) {}

  // ---- messages

  void DeclareModel(Client& client, const kvmwire::ClientMessage& message);
  void WithdrawAck(Client& client, const kvmwire::WithdrawAck& ack);

  // ---- announcing

  // To all that have declared its model and have not been told of it, but its owner.
  void AnnounceToAll(const Domain& domain, const Region& region);
  // Sends what the client has still to be told, as far as it takes it.
  void GoOn(Client& to);
  void GoOnAll();  // the same of all, in slices
  // A slice of announcing to those that were not told at once, since there are many; true if there is more.
  bool Work();

  // ---- withdrawing

  // Gives a serving region up. `waits`: it is kept until those that were told of it have
  // acknowledged; else its owner is said to have died, and nobody is waited for.
  void Withdraw(Domain& domain, Region& region, bool waits);
  // The same, waited for: `client` is answered when the region is gone, or told at the deadline
  // that it is not. kNoClient: nobody asks, the deadline alone matters.
  void WithdrawAndAnswer(Domain& domain, Region& region, ClientId client, std::uint64_t request_id, std::uint32_t ack_timeout_ms);
  // Until when acknowledgements are waited for, by what a client asks (0: it leaves that to kvmd).
  SteadyTime AckDeadline(std::uint32_t ack_timeout_ms) const;
  // Importers that have not acknowledged are waited for no longer.
  void StopWaiting(Region& region);
  // Answers those whose region is gone, and those whose deadline has passed.
  void AnswerWaiting(SteadyTime now);
  SteadyTime next_deadline() const noexcept;

  // Nobody waits for this client any more, nor does it wait.
  void Leave(const Client& client);

 private:
  // An owner that waits for its region to be gone.
  struct Waiting {
    RegionRef region;
    ClientId client;
    std::uint64_t request_id;
    SteadyTime deadline;
  };

  bool Send(Client& to, Region& region);  // false: kvmd lacks the descriptors
  bool Answer(const Waiting& waiting, SteadyTime now);

  const Config& config_;
  const std::function<void()>& work_to_do_;
  ClientTable& clients_;
  const DomainTable& domains_;
  LeaseService& leases_;
  Persistence& persistence_;
  std::vector<Waiting> waiting_;
  std::set<ClientId> behind_;  // who has announcements that nothing has been sent of yet
};

}  // namespace kvm::daemon
