// Broker: the clients that are members, and the dispatch of their messages to services.
//
// The server joins clients, passes their messages on and calls Tick; tests do the same without a
// socket. Each kind of message has a service of its own; Broker owns all of them, connects them,
// and has the table by which messages are dispatched (Rules). A service calls those that are
// declared before it. A service that has to call a later one does so by a callback that Broker
// sets. Single-threaded.
//
// A Status error from Handle means that the client broke the protocol and is to be dropped; all
// other errors are sent to the client as replies.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/clients/connection.h"
#include "daemon/broker/dispatcher.h"
#include "daemon/broker/services/evict_service.h"
#include "daemon/broker/services/lease_service.h"
#include "daemon/broker/services/mark_service.h"
#include "daemon/broker/services/offload_service.h"
#include "daemon/broker/services/orphan_service.h"
#include "daemon/broker/services/region_announcer.h"
#include "daemon/broker/services/region_service.h"
#include "daemon/broker/state/domain_table.h"
#include "daemon/broker/state/persistence.h"
#include "daemon/broker/state/restorer.h"
#include "daemon/broker/state/state_store.h"
#include "daemon/system/config.h"
#include "daemon/system/huge_page_maker.h"
#include "daemon/system/memory_freer.h"

namespace kvm::daemon {

class Broker {
 public:
  // `work_to_do` runs whenever Work has something to do. The others, if any, outlive the broker.
  // Without `huge_pages` they are made within Work; without `memory_freer` and `closer` memory is
  // freed at once. When the closer has closed something, Work is to be called.
  explicit Broker(
      const Config& config, std::function<void()> work_to_do = [] {}, StateStore* state_store = nullptr,
      HugePageMaker* huge_pages = nullptr, MemoryFreer* memory_freer = nullptr, DescriptorCloser* closer = nullptr);

  // Restores the state that an earlier kvmd stored. To be called before the first client joins.
  void Restore(PersistedState state) { restorer_.Restore(std::move(state)); }

  // `process`: a pidfd of the client's, if there is one.
  ClientId Join(Connection& connection, const Credentials& credentials, UniqueFd process = {});
  // Its pidfd, which lives as long as the client's membership; -1: none.
  int ProcessOf(ClientId client) const;
  // The connection has ended. `died`: the process has, too.
  void Leave(ClientId client, bool died);

  [[nodiscard]] Status Handle(ClientId client, kvmwire::ClientMessage message, std::vector<PeerFd> fds);
  // The same for a message whose descriptors kvmd could not take: it is refused, the client is
  // kept.
  [[nodiscard]] Status HandleWithoutDescriptors(ClientId client, const kvmwire::ClientMessage& message, const Error& why);
  // Whether the client's last message is not done yet: it has taken a slice of work (work_meter.h),
  // and GoOn does the next. Until it is done, nothing else of the client's should be handed over;
  // if it is, the rest is done first, at once.
  bool Busy(ClientId client) const;
  void GoOn(ClientId client);
  // What Handle would have returned if the message had been done at once.
  [[nodiscard]] Status Outcome(ClientId client) const;
  // Whether its hello has come.
  bool Greeted(ClientId client) const;
  // Whether there is something that the client has still to be told of; sends it, as far as the
  // client takes it.
  bool HasToTell(ClientId client) const;
  void GoOnAnnouncing(ClientId client);
  // Whether so many answers wait behind announcements that no more of the client's messages should
  // be read.
  bool Behind(ClientId client) const;

  void Tick(SteadyTime now);                  // to be called often: deadlines, heartbeats
  SteadyTime next_deadline() const noexcept;  // Tick must be called by then
  bool Work();                                // a slice of cleaning up; true if there is more
  void Sweep();
  void Close();  // called at an orderly end of kvmd

  // For tests, which compare what the services say with each other.
  const Dispatcher& dispatcher() const noexcept { return dispatcher_; }
  const DomainTable& domains() const noexcept { return domains_; }
  const Lessor& lessor() const noexcept { return leases_.lessor(); }

  std::uint64_t rejected_connections = 0;
  std::uint64_t protocol_errors = 0;

 private:
  std::vector<MessageRule> Rules();
  void LeaveDomain(Client& client);
  bool GiveUp(Domain& domain, const WorkBudget& budget);
  Status Hello(Client& client, const kvmwire::ClientMessage& message);
  void Welcome(Client& client, const kvmwire::ClientMessage& message);
  void ReplyStatus(Client& client, const kvmwire::ClientMessage& message);

  const Config& config_;
  const std::function<void()> work_to_do_;
  HugePagesNow huge_pages_now_;
  HugePageMaker& huge_pages_;
  FreeNow free_now_;
  MemoryFreer& memory_freer_;
  const std::uint64_t started_ms_ = RealtimeMs();
  bool closing_ = false;
  ClientTable clients_;
  Persistence persistence_;
  DomainTable domains_;
  LeaseService leases_;
  MarkService marks_;
  RegionAnnouncer announcer_;
  OffloadService offload_;
  Restorer restorer_;
  OrphanService orphans_;
  RegionService regions_;
  EvictService evictions_;
  const Dispatcher dispatcher_;
};

}  // namespace kvm::daemon
