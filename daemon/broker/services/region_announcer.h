// RegionAnnouncer: announces regions to clients, and waits for their acknowledgements when a region
// ends.
//
// The services that add and end regions call it (RegionService, OrphanService,
// OffloadService); it calls none of them. A region is announced to every client of its domain that
// has declared its model; a client takes announcements one after the other (announcements.h).
// A withdrawal is sent to all clients to which the region was announced. A client may wait until
// these have unmapped its memory, or until a deadline. It owns the list of waiting clients.
// Single-threaded.
#pragma once

#include <functional>
#include <set>
#include <vector>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/services/lease_service.h"
#include "daemon/broker/state/domain_table.h"
#include "daemon/broker/state/persistence.h"
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

  // Announces a region to all clients that have declared its model and do not know it yet, except
  // its owner.
  void AnnounceToAll(const Domain& domain, const Region& region);
  // Sends announcements that wait for the client, as far as it reads them.
  void GoOn(Client& to);
  void GoOnAll();  // the same of all, in slices
  // A slice of announcing, and of withdrawing, to those that were not told at once, since there are
  // many; true if there is more.
  bool Work();

  // ---- withdrawing

  // Withdraws a serving region. `waits`: it is kept until the clients that know it have
  // acknowledged; otherwise they are told that its owner has died, and no acknowledgement is waited
  // for.
  void Withdraw(Domain& domain, Region& region, bool waits);
  // The same, with acknowledgements: `client` is answered when the region is gone, or at the
  // deadline with an error. kNoClient: no client waits for the answer, and only the deadline
  // matters.
  void WithdrawAndAnswer(Domain& domain, Region& region, ClientId client, std::uint64_t request_id, std::uint32_t ack_timeout_ms);
  // The deadline of acknowledgements, from a client's request (0: kvmd's default).
  SteadyTime AckDeadline(std::uint32_t ack_timeout_ms) const;
  // Stops waiting for importers that have not acknowledged.
  void StopWaiting(Region& region);
  // Answers clients whose region is gone, and clients whose deadline has passed.
  void AnswerWaiting(SteadyTime now);
  SteadyTime next_deadline() const noexcept;

  // Called when a client has left: its acknowledgements are not waited for any more, and its own
  // waits end.
  void Leave(const Client& client);

 private:
  // An owner that waits for its region to be gone.
  struct Waiting {
    RegionRef region;
    ClientId client;
    std::uint64_t request_id;
    SteadyTime deadline;
  };

  static kvmwire::ServerMessage Withdrawal(const Region& region, bool waits);
  void GoOnWithdrawing(const WorkBudget& budget);
  bool Send(Client& to, Region& region);  // false: kvmd lacks the descriptors
  bool Answer(const Waiting& waiting, SteadyTime now);

  const Config& config_;
  const std::function<void()>& work_to_do_;
  ClientTable& clients_;
  const DomainTable& domains_;
  LeaseService& leases_;
  Persistence& persistence_;
  std::vector<Waiting> waiting_;
  std::set<ClientId> behind_;      // who has announcements that nothing has been sent of yet
  std::deque<RegionRef> telling_;  // regions whose end some clients are still to be told
};

}  // namespace kvm::daemon
